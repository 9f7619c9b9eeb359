"""ElevenLabs' own client, and its API over HTTP, against the gateway and a real Triton."""

from __future__ import annotations

import asyncio
import base64
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from dia2_client import pcm16
from dia2_client.types import Speech
from dia2_gateway.keys import digest, new_key
from elevenlabs import VoiceSettings
from elevenlabs.client import AsyncElevenLabs, ElevenLabs
from elevenlabs.core.api_error import ApiError

from tests.gateway.conftest import Gateway
from tests.gateway.elevenlabs_calls import LONG, RATE, SHORT, assert_sounds_like, engine_speech, samples, talk
from tests.gateway.test_openai import band_levels_db, decoded
from tests.gateway.tls import tls_before
from tests.server.conftest import Server

pytestmark = [
    pytest.mark.server,
    pytest.mark.filterwarnings("ignore:ConnectionClosed.code is deprecated:DeprecationWarning"),  # the client's own
    pytest.mark.filterwarnings("ignore:ConnectionClosed.reason is deprecated:DeprecationWarning"),  # likewise
]
TEXTS = (SHORT, "Another one speaks.")


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[ElevenLabs]:
    with httpx.Client() as http:
        yield ElevenLabs(base_url=gateway.url, api_key="any", httpx_client=http)


@pytest.fixture(scope="module")
def speeches(triton: Server) -> dict[str, Speech]:
    return {text: engine_speech(triton.grpc_url, text) for text in TEXTS}


def post(gateway: Gateway, path: str, body: object, **headers: str) -> tuple[int, Any]:
    """Status and JSON of the answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{gateway.url}/v1/text-to-speech/{path}", data, headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.parametrize("method", ["convert", "stream"])
def test_samples_are_the_engines(client: ElevenLabs, speeches: dict[str, Speech], method: str) -> None:
    speak: Callable[..., Iterator[bytes]] = getattr(client.text_to_speech, method)
    for text, speech in speeches.items():
        parts = list(
            speak(
                "anna", text=text, model_id="eleven_flash_v2_5", output_format="pcm_24000", seed=7,
                voice_settings=VoiceSettings(stability=0.3, similarity_boost=0.9, style=0.1, use_speaker_boost=True),
            )
        )  # fmt: skip
        assert b"".join(parts) == pcm16(speech.audio)


def test_default_format_sounds_as_the_engine_does(client: ElevenLabs, speeches: dict[str, Speech]) -> None:
    speech = speeches[SHORT]
    heard, rate = decoded(b"".join(client.text_to_speech.convert("anna", text=SHORT, seed=7)))
    assert rate == 44100
    assert len(heard) / rate == pytest.approx(len(speech.audio) / RATE, abs=2 * 1152 / 44100)
    assert np.abs(band_levels_db(heard, rate) - band_levels_db(speech.audio, RATE)).max() < 3


def test_leaving_a_stream_frees_the_slot(client: ElevenLabs, triton: Server) -> None:
    for _ in range(3):
        stream = client.text_to_speech.stream("anna", text=LONG, output_format="pcm_24000")
        assert next(iter(stream))
        triton.settle(live_streams=1)
        stream.close()  # type: ignore[attr-defined]
        triton.settle(live_streams=0, queued_streams=0)


def onsets_s(characters: list[str], starts_s: list[float]) -> list[float]:
    """When words begin."""
    pairs = zip([" ", *characters], characters, starts_s, strict=False)
    return [start_s for before, character, start_s in pairs if before == " " and character != " "]


def test_timestamps_of_a_whole_answer(client: ElevenLabs, speeches: dict[str, Speech]) -> None:
    for text, speech in speeches.items():
        answer = client.text_to_speech.convert_with_timestamps("anna", text=text, output_format="pcm_24000", seed=7)
        assert base64.b64decode(answer.audio_base_64) == pcm16(speech.audio)
        assert answer.alignment is not None
        assert answer.alignment == answer.normalized_alignment
        characters = answer.alignment.characters
        starts_s = answer.alignment.character_start_times_seconds
        ends_s = answer.alignment.character_end_times_seconds
        assert "".join(characters) == f"{text} "
        assert onsets_s(characters, starts_s) == [pytest.approx(word.start_s) for word in speech.words]
        assert ends_s[:-1] == starts_s[1:]
        assert ends_s[-1] == pytest.approx(len(speech.audio) / RATE)


def test_timestamps_of_a_streamed_answer(client: ElevenLabs, speeches: dict[str, Speech]) -> None:
    speech = speeches[SHORT]
    audio, characters, starts_s = b"", [], []
    for part in client.text_to_speech.stream_with_timestamps("anna", text=SHORT, output_format="pcm_24000", seed=7):
        assert part.alignment is not None
        before_s = len(audio) / 2 / RATE
        audio += base64.b64decode(part.audio_base_64)
        assert part.alignment.character_start_times_seconds[0] == pytest.approx(before_s)
        characters += part.alignment.characters
        starts_s += part.alignment.character_start_times_seconds
    assert audio == pcm16(speech.audio)
    told = "".join(characters)
    assert (told.split(), told[-1]) == (SHORT.split(), " ")  # a chunk of silence brings a space of its own
    assert onsets_s(characters, starts_s) == [pytest.approx(word.start_s) for word in speech.words]


def test_asyncio_client_speaks_several_at_once(gateway: Gateway, speeches: dict[str, Speech]) -> None:
    async def speak() -> list[bytes]:
        async with httpx.AsyncClient() as http:
            client = AsyncElevenLabs(base_url=gateway.url, api_key="any", httpx_client=http)

            async def one(text: str) -> bytes:
                parts = client.text_to_speech.stream("anna", text=text, output_format="pcm_24000", seed=7)
                return b"".join([part async for part in parts])

            return await asyncio.gather(*(one(text) for text in speeches))

    assert asyncio.run(speak()) == [pcm16(speech.audio) for speech in speeches.values()]


@pytest.fixture(scope="module")
def realtime(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ElevenLabs]:
    """For `convert_realtime`, which always wants TLS."""
    folder = tmp_path_factory.mktemp("tls")
    with (
        tls_before(gateway.url, folder) as (url, ca_file),
        pytest.MonkeyPatch.context() as patch,
        httpx.Client() as http,
    ):
        patch.setenv("SSL_CERT_FILE", str(ca_file))
        yield ElevenLabs(base_url=url, api_key="any", httpx_client=http)


def test_realtime_text(realtime: ElevenLabs, speeches: dict[str, Speech]) -> None:
    """No seed can be given, so that each time something else is heard; the words and the spectrum are the same."""
    for text, speech in speeches.items():
        words = (f"{word} " for word in text.split())
        parts = realtime.text_to_speech.convert_realtime("anna", text=words, output_format="pcm_24000")
        heard = samples(b"".join(parts))
        assert len(heard) % 1920 == 0
        assert_sounds_like(heard, speech.audio)


def test_interrupted_realtime_text(realtime: ElevenLabs, triton: Server) -> None:
    words = (f"{word} " for word in LONG.split())
    stream = realtime.text_to_speech.convert_realtime("anna", text=words, output_format="pcm_24000")
    assert next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    triton.settle(live_streams=0, queued_streams=0)


def test_realtime_text_to_an_unknown_voice(realtime: ElevenLabs) -> None:
    with pytest.raises(ApiError) as caught:
        list(realtime.text_to_speech.convert_realtime("nobody", text=iter(["Hello. "])))
    assert "nobody" in str(caught.value.body)


def test_voices_and_models(client: ElevenLabs, make_gateway: Callable[..., Gateway]) -> None:
    listed = client.voices.get_all()
    names = {voice.voice_id for voice in listed.voices}
    assert {"anna", "ben", "carla", "david", "anna-and-ben"} <= names
    assert {voice.voice_id for voice in client.voices.search().voices} == names
    assert client.voices.get("anna").name == "anna"
    (model,) = client.models.list()
    assert model.can_do_text_to_speech
    with pytest.raises(ApiError) as caught:
        client.voices.get("nobody")
    assert caught.value.status_code == 404
    named = make_gateway(aliases={"JBFqnCBsd6RMkjVDRZzb": "ben"})
    with httpx.Client() as http:
        other = ElevenLabs(base_url=named.url, api_key="any", httpx_client=http)
        assert other.voices.get("JBFqnCBsd6RMkjVDRZzb").labels == {"alias_of": "ben"}
        spoken = [
            b"".join(other.text_to_speech.convert(voice, text=SHORT, output_format="pcm_24000", seed=7))
            for voice in ("JBFqnCBsd6RMkjVDRZzb", "ben")
        ]
        assert spoken[0] == spoken[1] != b""


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("anna", {}, 400, "text"),
        ("anna", {"text": "  "}, 400, "text"),
        ("anna", {"text": "[S1]"}, 400, "text"),
        ("anna", {"text": 3}, 400, "text"),
        ("anna", b"{", 400, None),
        ("anna", [], 400, None),
        ("anna/with-timestamps", {"text": "[S1]"}, 400, "text"),
        ("anna/stream", {"text": "Hi", "voice_settings": {"speed": 1.1}}, 400, "voice_settings.speed"),
        ("anna", {"text": "Hi", "voice_settings": {"style": "loud"}}, 400, "voice_settings.style"),
        ("anna", {"text": "Hi", "voice_settings": 1}, 400, "voice_settings"),
        ("anna", {"text": "Hi", "language_code": "de"}, 400, "language_code"),
        ("anna", {"text": "Hi", "apply_text_normalization": "never"}, 400, "apply_text_normalization"),
        ("anna", {"text": "Hi", "seed": -1}, 400, "seed"),
        ("anna", {"text": "Hi", "seed": 1.5}, 400, "seed"),
        ("anna", {"text": "Hi", "pronunciation_dictionary_locators": [{}]}, 400, "pronunciation_dictionary_locators"),
        ("anna?output_format=mp3_7", {"text": "Hi"}, 400, "output_format"),
        ("nobody", {"text": "Hi"}, 404, "voice_id"),
    ],
)
def test_refusals(gateway: Gateway, path: str, body: object, status: int, param: str | None) -> None:
    seen, answer = post(gateway, path, body)
    assert seen == status
    assert answer["detail"].get("param") == param
    assert answer["detail"]["message"]


def test_what_cannot_be_done_and_is_not_heard_is_ignored(gateway: Gateway, speeches: dict[str, Speech]) -> None:
    body = {
        "text": SHORT,
        "seed": 7,
        "model_id": "eleven_multilingual_v2",
        "language_code": "en-US",
        "voice_settings": {"stability": 0.1, "speed": 1.0, "of_a_newer_client": True},
        "previous_text": "Before.",
        "next_text": "After.",
        "pronunciation_dictionary_locators": [],
        "apply_text_normalization": "auto",
        "of_a_newer_client": {},
    }
    query = "output_format=pcm_24000&optimize_streaming_latency=3&enable_logging=false"
    status, answer = post(gateway, f"anna/with-timestamps?{query}", body)
    assert status == 200
    assert base64.b64decode(answer["audio_base64"]) == pcm16(speeches[SHORT].audio)


def test_keys(make_gateway: Callable[..., Gateway]) -> None:
    key = new_key()
    gateway = make_gateway(keys={"tester": {"sha256": digest(key), "concurrent_streams": 1}})
    with httpx.Client() as http:
        assert ElevenLabs(base_url=gateway.url, api_key=key, httpx_client=http).voices.get_all().voices
        with pytest.raises(ApiError) as caught:
            list(
                ElevenLabs(base_url=gateway.url, api_key="wrong", httpx_client=http).text_to_speech.stream(
                    "anna", text="Hi"
                )
            )
    assert caught.value.status_code == 401
    assert caught.value.body["detail"]["status"] == "invalid_api_key"
    for path in ("stream-input", "multi-stream-input"):
        with talk(gateway.ws_url, path, key="wrong") as talking:
            assert talking.until_closed() == 1008
            assert talking.heard[None].errors() == ["invalid_api_key"]
        with talk(gateway.ws_url, path) as talking:
            talking.say(text=" ", xi_api_key="wrong")
            assert talking.until_closed() == 1008
        with talk(gateway.ws_url, path) as talking:
            talking.say(text=" ", xi_api_key=key)
            talking.say(text=f"{SHORT} ", flush=True)
            talking.until_heard()
        gateway.settle()
        with talk(gateway.ws_url, path, key=key) as talking:
            talking.say(text=LONG)
            talking.until_heard()
            status, answer = post(gateway, "anna", {"text": SHORT}, **{"xi-api-key": key})
            assert (status, answer["detail"]["status"]) == (429, "too_many_concurrent_requests")
        gateway.settle()


def test_without_a_back_end(make_gateway: Callable[..., Gateway]) -> None:
    gateway = make_gateway(backends=["127.0.0.1:1"])
    status, answer = post(gateway, "anna", {"text": SHORT})
    assert (status, answer["detail"]["status"]) == (503, "system_busy")
    with httpx.Client() as http, pytest.raises(ApiError) as caught:
        ElevenLabs(base_url=gateway.url, api_key="any", httpx_client=http).voices.get_all(
            request_options={"max_retries": 0}
        )
    assert caught.value.status_code == 503
    with talk(gateway.ws_url, "stream-input") as talking:
        talking.say(text=f"{SHORT} ")
        assert talking.until_closed() == 1011
        assert talking.heard[None].errors() == ["system_busy"]
    with talk(gateway.ws_url) as talking:
        talking.say(context_id="a", text=f"{SHORT} ")
        assert talking.until_final("a").errors() == ["system_busy"]
        talking.say(close_socket=True)
        assert talking.until_closed() == 1000
