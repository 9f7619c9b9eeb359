"""The native WebSocket on a real gateway before a real Triton: what is heard is what the engine makes."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from dia2_gateway.native import FIELDS
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.server.conftest import Server

from .conftest import LINE, LONG, SEED, Gateway
from .talk import directly, in_loop, talking

pytestmark = pytest.mark.server

FRAME_BYTES = 2 * 1920


@in_loop
async def test_speech_is_that_of_the_engine(gateway: Gateway, triton: Server) -> None:
    audio, words = await directly(triton, LINE, voice="ben", seed=SEED)
    async with talking(gateway.ws_url) as talk:
        heard = await talk.say(LINE, voice="ben", seed=SEED)
    assert heard.audio == audio
    assert heard.words == words
    assert [word["text"] for word in words] == LINE.removeprefix("[S1] ").split()
    started = heard.events[0]
    assert (started["type"], started["sample_rate"], started["format"]) == ("started", 24000, "pcm_24000")
    assert started["voice"] == "ben"
    assert heard.last == {"type": "done", "reason": "stop", "seconds": len(audio) / 48000}


@in_loop
async def test_text_in_pieces_sounds_like_the_whole(gateway: Gateway, triton: Server) -> None:
    audio, words = await directly(triton, LINE, seed=SEED)
    async with talking(gateway.ws_url) as talk:
        await talk.send("start", seed=SEED)
        for i in range(0, len(LINE), 3):
            await talk.send("text", text=LINE[i : i + 3])
        await talk.send("close")
        heard = await talk.hear()
    assert (heard.audio, heard.words) == (audio, words)


@in_loop
async def test_words_come_just_before_the_audio_in_which_they_begin(gateway: Gateway) -> None:
    async with talking(gateway.ws_url) as talk:
        await talk.send("tts", text=LINE, seed=SEED)
        heard, told = 0, 0  # bytes, words
        while True:
            message = await talk.receive()
            if isinstance(message, bytes):
                heard += len(message)
            elif message["type"] == "words":
                for word in message["words"]:
                    told += 1
                    assert heard / 48000 <= word["start"]
                message = await talk.receive()
                assert isinstance(message, bytes)
                heard += len(message)
                assert word["start"] < heard / 48000
            elif message["type"] == "done":
                break
    assert told == 8


@in_loop
async def test_without_words_and_as_json(gateway: Gateway) -> None:
    async with talking(gateway.ws_url) as talk:
        plain = await talk.say(LINE, seed=SEED)
        other = await talk.say(LINE, seed=SEED, words=False, audio="json")
    assert not other.audio
    assert {event["type"] for event in other.events} == {"started", "audio", "done"}
    told = [base64.b64decode(event["audio"]) for event in other.events if event["type"] == "audio"]
    assert b"".join(told) == plain.audio


@in_loop
async def test_another_format(gateway: Gateway) -> None:
    async with talking(gateway.ws_url) as talk:
        heard = await talk.say(LINE, seed=SEED, format="ulaw_8000")
    assert (heard.events[0]["format"], heard.events[0]["sample_rate"]) == ("ulaw_8000", 8000)
    assert heard.last["seconds"] == len(heard.audio) / 8000


@in_loop
async def test_a_flush_speaks_what_is_there(gateway: Gateway) -> None:
    """Without more text, and the utterance goes on afterwards."""
    async with talking(gateway.ws_url) as talk:
        await talk.send("text", text="Hello there, how ")
        await talk.send("text", text="are you?")
        await talk.send("flush")
        words: list[str] = []
        while words != ["Hello", "there,", "how", "are", "you?"]:
            message = await talk.receive()
            if isinstance(message, dict) and message["type"] == "words":
                words += [word["text"] for word in message["words"]]
        await talk.send("text", text=" Fine, thanks.")
        await talk.send("close")
        heard = await talk.hear()
    assert [word["text"] for word in heard.words] == ["Fine,", "thanks."]
    assert heard.last["type"] == "done"


@in_loop
async def test_barge_in_tells_what_was_heard(gateway: Gateway, triton: Server) -> None:
    async with talking(gateway.ws_url) as talk:
        await talk.send("tts", text=LONG)
        heard = await talk.hear_audio()
        while len(heard.words) < 5:
            message = await talk.receive()
            if isinstance(message, dict):
                heard.events.append(message)
            else:
                heard.audio += message
        played_s = heard.words[2]["start"] + 0.01
        await talk.send("cancel", played_s=played_s)
        heard = await talk.hear(heard)
        assert heard.last["type"] == "cancelled"
        assert heard.last["spoken"] == heard.words[:3]
        assert heard.last["seconds"] == len(heard.audio) / 48000
        triton.settle(live_streams=0, queued_streams=0)
        again = await talk.say("One two three four.")  # the connection takes the next one, and no old audio comes
    assert [word["text"] for word in again.words] == ["One", "two", "three", "four."]
    assert again.last["seconds"] == len(again.audio) / 48000


@in_loop
async def test_what_comes_behind_a_cancel_is_for_the_next_utterance(gateway: Gateway, triton: Server) -> None:
    """It need not wait for the answer; and a cancel may come before the utterance has even begun."""
    audio, _ = await directly(triton, LINE, seed=SEED)
    async with talking(gateway.ws_url) as talk:
        for heard_first in (True, False):
            await talk.send("tts", text=LONG)
            heard = await talk.hear_audio() if heard_first else None
            await talk.send("cancel")
            await talk.send("start", seed=SEED)
            await talk.send("text", text=LINE)
            await talk.send("close")
            assert (await talk.hear(heard)).last["type"] == "cancelled"
            assert (await talk.hear()).audio == audio


@in_loop
async def test_a_refused_text_leaves_no_options_behind(make_gateway: Any, triton: Server) -> None:
    gateway = make_gateway(limits={"characters_per_request": len(LINE)})
    audio, _ = await directly(triton, LINE, voice="anna", seed=SEED)
    async with talking(gateway.ws_url) as talk:
        await talk.send("start", voice="anna", seed=SEED)
        await talk.send("tts", text=LONG, voice="ben", format="wav")
        check_refusal(await talk.event(), "text", f"allowed: {len(LINE)}")
        await talk.send("text", text=LINE)
        await talk.send("close")
        assert (await talk.hear()).audio == audio


@in_loop
async def test_cancel_without_a_position_tells_every_word(gateway: Gateway) -> None:
    async with talking(gateway.ws_url) as talk:
        await talk.send("tts", text=LONG)
        heard = await talk.hear_audio()
        await talk.send("cancel")
        heard = await talk.hear(heard)
        assert heard.last["spoken"] == heard.words
        await talk.send("cancel")  # it crosses the end
        assert await talk.event() == {"type": "cancelled", "spoken": [], "seconds": 0.0}


@in_loop
async def test_many_utterances_on_one_connection(gateway: Gateway, triton: Server) -> None:
    texts = ["Hello there my friend.", "How are you today?", "Good bye for now."]
    async with talking(gateway.ws_url) as talk:
        heard = [await talk.say(text, seed=seed) for seed, text in enumerate(texts)]
    for seed, text in enumerate(texts):
        audio, _ = await directly(triton, text, seed=seed)
        assert heard[seed].audio == audio
    ids = [one.events[0]["id"] for one in heard]
    assert ids[1:] == [f"{ids[0]}-2", f"{ids[0]}-3"]


NO_TEXT = "no text has come"
WRONG: list[tuple[str | bytes, str | None, str]] = [  # message, the field at fault, what is said of it
    ("hello", None, "not JSON"),
    ("[1]", None, "JSON object"),
    ("[" * 60_000, None, "not JSON"),
    (b"\x00\x01", None, "not binary"),
    ("{}", "type", "start, text, flush, close, cancel, tts"),
    ('{"type": "speak"}', "type", '"speak"'),
    ('{"type": 1}', "type", "a string"),
    ('{"type": "text"}', "text", "required"),
    ('{"type": "text", "text": 7}', "text", "a string"),
    ('{"type": "text", "text": "\\ud800"}', "text", "a string"),
    ('{"type": "text", "text": "Hi", "flush": true}', "flush", "no field"),
    ('{"type": "flush"}', "type", NO_TEXT),
    ('{"type": "close"}', "type", NO_TEXT),
    ('{"type": "tts", "text": " "}', "text", "not empty"),
    ('{"type": "start", "voice": "bob"}', "voice", "known voices: anna, anna-and-ben, ben, carla, david, none"),
    ('{"type": "start", "seed": 1.5}', "seed", "whole number"),
    ('{"type": "start", "temperature": NaN}', "temperature", "a number"),
    ('{"type": "start", "format": "mp4"}', "format", "pcm"),
    ('{"type": "start", "audio": "text"}', "audio", "binary or json"),
    ('{"type": "start", "words": 1}', "words", "true or false"),
    ('{"type": "cancel", "played_s": -1}', "played_s", "0 or more"),
    ('{"type": "cancel", "played_s": "now"}', "played_s", "a number"),
]


@in_loop
async def test_a_wrong_message_is_named_and_changes_nothing(gateway: Gateway, triton: Server) -> None:
    """Neither before an utterance nor within it."""
    audio, _ = await directly(triton, "One two three four five.", seed=SEED)
    async with talking(gateway.ws_url) as talk:
        for message, field, said in WRONG:
            await talk.socket.send(message)
            check_refusal(await talk.event(), field, said)
        await talk.send("start", seed=SEED)
        await talk.send("text", text="One two ")
        assert (await talk.event())["type"] == "started"
        within = [wrong for wrong in WRONG if '"start"' not in str(wrong[0]) and '"tts"' not in str(wrong[0])]
        within += [('{"type": "start"}', "type", "live"), ('{"type": "tts", "text": "Hi."}', "type", "live")]
        for message, field, said in within:
            if said != NO_TEXT:
                await talk.socket.send(message)
                check_refusal(await talk.event(), field, said)
        await talk.send("text", text="three four five.")
        await talk.send("close")
        heard = await talk.hear()
    assert heard.audio == audio


def check_refusal(event: dict[str, Any], field: str | None, said: str) -> None:
    assert event["type"] == "error"
    assert event["code"] == "invalid_request"
    assert event.get("field") == field, event
    assert said in event["message"], event
    assert "id" not in event, "it has ended no utterance"


@in_loop
async def test_text_behind_a_close_is_refused(gateway: Gateway) -> None:
    async with talking(gateway.ws_url) as talk:
        await talk.send("tts", text=LONG)
        await talk.hear_audio()
        await talk.send("text", text="more")
        event: Any = b""
        while isinstance(event, bytes) or event["type"] != "error":
            event = await talk.receive()
        check_refusal(event, "type", "wait for done, or cancel it")
        await talk.send("cancel")
        assert (await talk.hear()).last["type"] == "cancelled"


@in_loop
async def test_what_the_engine_refuses_ends_the_utterance(gateway: Gateway) -> None:
    """And what was on its way for it is ignored, up to the next one."""
    async with talking(gateway.ws_url) as talk:
        await talk.send("start", temperature=99.0)
        await talk.send("text", text="Hello there, ")
        heard = await talk.hear()
        assert heard.last["code"] == "invalid_request"
        assert heard.last["field"] == "temperature"
        assert "allowed: 0 to 2" in heard.last["message"]
        assert heard.last["id"] == heard.events[0]["id"]
        await talk.send("text", text="how are you?")
        await talk.send("flush")
        await talk.send("close")
        heard = await talk.say("One two three four.")
    assert [event["type"] for event in heard.events if event["type"] != "words"] == ["started", "done"]
    assert len(heard.words) == 4


@in_loop
async def test_a_text_without_words_is_spoken_as_nothing(gateway: Gateway) -> None:
    async with talking(gateway.ws_url) as talk:
        await talk.send("text", text="")  # nothing at all begins nothing
        await talk.send("text", text=" [S1] ")
        await talk.send("close")
        heard = await talk.hear()
    assert heard.audio == b""
    assert heard.last == {"type": "done", "reason": "stop", "seconds": 0.0}


@in_loop
async def test_callers_do_not_hear_each_other(gateway: Gateway, triton: Server) -> None:
    """Eight at once, in pieces, each sounds as it does alone."""
    texts = [f"Number {n} says hello, and then number {n} says good bye." for n in range(8)]

    async def speak(n: int) -> bytes:
        async with talking(gateway.ws_url) as talk:
            await talk.send("start", seed=n)
            for word in texts[n].split(" "):
                await talk.send("text", text=word + " ")
            await talk.send("close")
            return (await talk.hear()).audio

    together = await asyncio.gather(*(speak(n) for n in range(8)))
    for n, audio in enumerate(together):
        assert audio == (await directly(triton, texts[n] + " ", seed=n))[0]


@in_loop
async def test_a_caller_who_leaves_frees_the_slot(gateway: Gateway, triton: Server) -> None:
    async with talking(gateway.ws_url) as talk:
        await talk.send("tts", text=LONG)
        await talk.hear_audio()
    triton.settle(live_streams=0, queued_streams=0)
    gateway.settle()


@in_loop
async def test_the_description_is_true(gateway: Gateway) -> None:
    """docs/gateway-stream.asyncapi.yaml has the fields that are read, and every event is as it says."""
    file = Path(__file__).parents[2] / "docs" / "gateway-stream.asyncapi.yaml"
    components = yaml.safe_load(file.read_text())["components"]
    payloads = {
        message["payload"]["properties"]["type"]["const"]: (name, message["payload"])
        for name, message in components["messages"].items()
        if message["payload"]["type"] == "object"
    }
    assert {kind: set(payloads[kind][1]["properties"]) for kind in FIELDS} == {k: set(v) for k, v in FIELDS.items()}

    async with talking(gateway.ws_url) as talk:
        events = (await talk.say("One two three four.", audio="json")).events
        events += (await talk.say("One two three four.", top_k=-1)).events
        await talk.send("tts", text=LONG)
        heard = await talk.hear_audio()
        await talk.send("cancel", played_s=0.1)
        events += (await talk.hear(heard)).events
        await talk.send("text")
        events.append(await talk.event())
    assert {event["type"] for event in events} == set(payloads) - set(FIELDS)
    for event in events:
        schema = {"$ref": f"#/components/messages/{payloads[event['type']][0]}/payload", "components": components}
        jsonschema_rs.validate(schema, event)
        assert set(event) <= set(payloads[event["type"]][1]["properties"])


@in_loop
async def test_an_idle_connection_is_closed(make_gateway: Any) -> None:
    gateway = make_gateway(idle_timeout_s=0.2)
    async with talking(gateway.ws_url) as talk:
        assert (await talk.say("One two three four.")).last["type"] == "done"
        with pytest.raises(ConnectionClosed) as closed:
            await talk.receive()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000


@in_loop
async def test_a_foreign_page_may_not_connect(gateway: Gateway) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with talking(gateway.ws_url, origin="https://elsewhere.example"):
            raise AssertionError("connected")
    assert refused.value.response.status_code == 403
    assert json.loads(refused.value.response.body or b"")["error"]["code"] == "forbidden"
    async with talking(gateway.ws_url, origin=gateway.url) as own:
        assert (await own.say("One two three four.")).last["type"] == "done"


@in_loop
async def test_without_keys_only_names_of_this_machine_are_served(gateway: Gateway) -> None:
    """Else a foreign page could have its own name resolve to this machine, and be of one origin with the gateway."""
    port = gateway.url.rpartition(":")[2]
    for name in ("attacker.example", f"attacker.example:{port}", "127.0.0.1.attacker.example", "[::1", "10.0.0.1"):
        answer = gateway.call("/v1/audio/voices", Host=name)
        assert (answer.status, answer.error["code"]) == (403, "forbidden")
        assert name in answer.error["message"]
    for name in ("localhost", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert gateway.call("/v1/audio/voices", Host=name).status == 200
    with pytest.raises(InvalidStatus) as refused:
        async with talking(f"ws://attacker.example:{port}", host="127.0.0.1", port=int(port)):
            raise AssertionError("connected")
    assert refused.value.response.status_code == 403
