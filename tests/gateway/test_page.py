"""The web page in a real Chromium, before a real gateway and a real Triton: what is typed, pressed, shown and heard."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from dia2_client import Client, pcm16
from dia2_gateway.keys import digest, new_key
from playwright.sync_api import Browser, expect, sync_playwright
from websockets.sync.client import connect

from tests.server.conftest import SETTLE_S, Server

from .conftest import LONG, SEED, Gateway, eventually
from .visit import DRIVE, TAP, WATCH, Visit

pytestmark = pytest.mark.server

LINE = "[S1] Hello there: it's me. [S2] And who are you?"
SHORT = "Hello there."
WORDS = ["Hello", "there", "it's", "me.", "And", "who", "are", "you?"]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=document-user-activation-required",  # as phones have it
    "--host-resolver-rules=MAP gateway.test 127.0.0.1",
]
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}

Visits = Callable[..., Visit]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium of the system: nothing is downloaded."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "these tests need Chromium; on Debian: apt-get install --no-install-recommends chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visits]:
    """Opens a page; in the end the browser may not have complained, nor have asked any other host for anything."""
    visits: list[Visit] = []
    hosts: set[str] = set()
    own: set[str] = set()

    def visit(gateway: Gateway, *, refused: bool = False, **options: Any) -> Visit:
        """`refused` where the server refuses a request: the browser then logs that by itself."""
        context = browser.new_context(**options)
        context.set_default_timeout(1000 * SETTLE_S)
        context.add_init_script(WATCH)
        visit = Visit(context.new_page(), refused)
        visits.append(visit)
        own.add(gateway.url.removeprefix("http://"))
        visit.page.on("request", lambda request: hosts.add(re.sub(r"^(blob:)?\w+://([^/]*).*", r"\2", request.url)))
        visit.page.goto(gateway.url)
        return visit

    yield visit
    for visited in visits:
        visited.page.context.close()
        assert visited.complaints == []
    assert hosts == own


def engine(triton: Server, text: str, **options: Any) -> tuple[bytes, list[tuple[str, float]]]:
    """What the engine makes of it, without gateway and page: PCM16, and the words with their onsets."""
    with Client(triton.grpc_url) as client, client.session(**options) as session:
        session.send(text)
        session.close()
        audio = b"".join(pcm16(chunk.audio) for chunk in session)
    return audio, [(word.text, word.start_s) for word in session.words]


def test_what_is_typed_is_heard(visit: Visits, gateway: Gateway, triton: Server) -> None:
    audio, words = engine(triton, LINE, seed=SEED)
    user = visit(gateway)
    waveform = user.page.get_by_label("Waveform")
    blank = waveform.screenshot()
    user.write(LINE)
    user.press("Speak")
    status = user.says("^Spoken")
    assert status == f"Spoken: {len(audio) / 48000:.2f} s. Seed {SEED}."
    assert user.download() == audio
    assert user.heard() == ["Hello", "there:", "it's", "me.", "And", "who", "are", "you?"]
    assert user.page.locator("#transcript p").count() == 2  # a turn each
    assert len(waveform.screenshot()) > 2 * len(blank)
    assert re.fullmatch(r"\d+ ms", user.page.locator("#first-chunk").inner_text())
    assert re.fullmatch(r"\d+ ms", user.page.locator("#first-heard").inner_text())
    # A word is lit when it is heard, however long before that it came: the clock shows tenths of a second.
    lit = user.page.evaluate("lit.map(({ word, clock }) => [word.replace(':', ''), clock])")
    assert [word for word, _ in words] == WORDS
    onsets = dict(words)
    assert lit, "no word was lit"
    assert [word for word, _ in lit] == [word for word in WORDS if word in dict(lit)]  # a slow machine may skip one
    assert all(clock >= onsets[word] - 0.05 for word, clock in lit)


def test_each_sample_reaches_the_loudspeaker(visit: Visits, gateway: Gateway, triton: Server) -> None:
    audio, _ = engine(triton, SHORT, seed=SEED)
    user = visit(gateway, bypass_csp=True)  # the page's policy would not let the listener in
    user.page.evaluate(TAP)
    user.write(SHORT)
    for _ in range(20):  # the machine may be too busy for one without an underrun
        user.page.evaluate("tapped.length = 0")
        user.press("Speak")
        user.says("^Spoken")
        if user.page.locator("#gaps").inner_text() == "0":
            break
    assert user.page.locator("#gaps").inner_text() == "0"
    tapped = np.rint(np.array(user.page.evaluate("tapped")) * 32767).astype("<i2").tobytes().strip(b"\0")
    assert tapped == audio.strip(b"\0")


def test_stop_says_what_was_heard(visit: Visits, gateway: Gateway, triton: Server) -> None:
    user = visit(gateway)
    user.write(LONG)
    user.page.keyboard.press("Control+Enter")
    user.lights(3)
    user.page.keyboard.press("Escape")
    user.says("^Stopped")
    eventually(lambda: user.page.evaluate("1") and user.received[-1]["type"] == "cancelled")
    (cancel,) = [message for message in user.sent if message["type"] == "cancel"]
    status = user.says(f"^Stopped after {cancel['played_s']:.2f} s: {len(user.received[-1]['spoken'])} of ")
    assert f"of {len(LONG.split())} words" in status
    assert user.heard() == [word["text"] for word in user.received[-1]["spoken"]]
    assert len(user.heard()) >= 3
    triton.settle(live_streams=0)
    # The file has what was heard, and no more.
    audio, _ = engine(triton, " ".join(LONG.split()[:16]), seed=SEED)
    part = user.download()
    assert len(part) == round(cancel["played_s"] * 24000) * 2
    assert part == audio[: len(part)]


def test_speaking_again_interrupts(visit: Visits, gateway: Gateway, triton: Server) -> None:
    user = visit(gateway)
    user.write(LONG)
    user.press("Speak")
    user.lights(1)
    user.page.get_by_role("textbox", name="Text").fill(SHORT)
    user.press("Speak")
    user.says("^Spoken")
    assert user.download() == engine(triton, SHORT, seed=SEED)[0]
    assert [message["type"] for message in user.sent] == ["tts", "cancel", "tts"]


def test_speaking_while_typing(visit: Visits, gateway: Gateway, triton: Server) -> None:
    user = visit(gateway)
    user.write("")
    user.page.get_by_label("Speak as I type").check()
    box = user.page.get_by_role("textbox", name="Text")
    box.press_sequentially("One two three four five six seven eight")
    user.lights(1)  # before the sentence is complete
    expect(box).to_have_value("eight")
    box.press("Enter")
    user.lights(8)
    box.press_sequentially("and more")
    user.press("Finish")
    user.says("^Spoken")
    words = ["One", "two", "three", "four", "five", "six", "seven", "eight", "and", "more"]
    assert user.heard() == words
    assert [message["text"] for message in user.sent if message["type"] == "text"] == [f"{word} " for word in words]
    assert [message["type"] for message in user.sent if message["type"] != "text"] == ["start", "flush", "close"]


def test_asks_for_a_key(visit: Visits, make_gateway: Callable[..., Gateway]) -> None:
    key = new_key()
    user = visit(make_gateway(keys={"tester": {"sha256": digest(key)}}), refused=True)
    field = user.page.get_by_label("API key")
    expect(field).to_be_focused()
    expect(user.page.get_by_role("button", name="Speak", exact=True)).to_be_disabled()
    field.fill("wrong")
    field.press("Enter")
    user.complains("not accepted")
    field.fill(key)
    field.press("Enter")
    expect(field).to_be_hidden()
    user.write(SHORT)
    user.press("Speak")
    user.says("^Spoken")
    assert user.page.evaluate("[localStorage.length, document.cookie, sessionStorage.length]") == [0, "", 1]


def test_a_full_server_can_be_tried_again(visit: Visits, make_gateway: Callable[..., Gateway]) -> None:
    gateway = make_gateway(streams_per_backend=1, queue=0)
    user = visit(gateway)
    user.write(SHORT)
    with connect(gateway.ws_url + "/v1/stream") as other:
        other.send(json.dumps({"type": "tts", "text": LONG}))
        assert json.loads(other.recv(SETTLE_S))["type"] == "started"
        user.press("Speak")
        user.complains("The server is full")
    gateway.settle()
    user.press("Try again")
    user.says("^Spoken")
    expect(user.page.get_by_role("alert")).to_be_empty()


def test_a_voice_that_is_gone(visit: Visits, gateway: Gateway) -> None:
    user = visit(gateway)
    voice = user.page.get_by_label("Voice")
    expect(voice).to_be_enabled()
    assert set(voice.locator("option").all_inner_texts()) == {"anna", "anna-and-ben", "ben", "carla", "david", "none"}
    assert voice.input_value() == "anna"
    voice.evaluate("select => { select.options[0].value = 'nobody'; }")
    user.press("Speak")
    user.complains("nobody.*anna")
    user.says("^Nothing was spoken")
    expect(voice).to_have_attribute("aria-invalid", "true")
    expect(voice.locator("option[value=nobody]")).not_to_be_attached()  # the list was read again


def test_a_bad_option_is_not_sent(visit: Visits, gateway: Gateway) -> None:
    user = visit(gateway)
    user.write(LINE)
    user.page.get_by_label("Temperature").fill("3")
    user.press("Speak")
    expect(user.page.get_by_label("Temperature")).to_be_focused()
    assert user.sent == []


def test_a_lost_connection(visit: Visits, make_gateway: Callable[..., Gateway]) -> None:
    gateway = make_gateway()
    user = visit(gateway, refused=True)
    user.write(LONG)
    user.press("Speak")
    user.lights(1)
    gateway.process.kill()
    user.complains("Connection lost.*was played")
    user.says(r"^Broken off after \d")
    assert user.download()


def test_says_that_sound_needs_https(visit: Visits, make_gateway: Callable[..., Gateway]) -> None:
    key = new_key()
    gateway = make_gateway(keys={"tester": {"sha256": digest(key)}})  # without, only this machine's names are served
    user = visit(replace(gateway, url=gateway.url.replace("127.0.0.1", "gateway.test")), refused=True)
    user.page.get_by_label("API key").fill(key)
    user.press("Use this key")
    user.press("Speak")
    user.complains("No audio output.*HTTPS")


def test_on_a_phone(visit: Visits, gateway: Gateway) -> None:
    user = visit(gateway, **PHONE)
    user.write(LINE)
    wide = "document.documentElement.scrollWidth"
    assert user.page.evaluate(wide) == 360
    targets = user.page.locator("button:visible, input:visible, select, textarea, summary, .check")
    boxes = {target.evaluate("e => e.outerHTML.slice(0, 60)"): target.bounding_box() for target in targets.all()}
    boxes = {html: box for html, box in boxes.items() if 'type="checkbox"' not in html}  # its label is the target
    assert {html: box["height"] for html, box in boxes.items() if box and box["height"] < 44} == {}
    user.page.get_by_role("button", name="Speak", exact=True).tap()
    user.lights(1)
    assert user.page.evaluate(wide) == 360
    expect(user.page.locator("#transcript")).to_be_in_viewport()
    expect(user.page.get_by_role("button", name="Stop")).to_be_in_viewport()
    user.page.get_by_role("button", name="Stop").tap()
    user.says("^Stopped")


def drive(user: Visit, *steps: int | dict[str, Any]) -> tuple[list[float], list[dict[str, Any]]]:
    """Blocks of 128 samples, and messages between them; the samples played and the messages sent."""
    out, told = user.page.evaluate(DRIVE, list(steps))
    return out, told


def chunk(frames: int) -> dict[str, Any]:
    return {"do": "add", "samples": [0.5] * (1920 * frames)}


def test_the_player_plays_each_sample_once(visit: Visits, gateway: Gateway) -> None:
    ramp = [i / 8192 for i in range(4096)]
    add = {"do": "add", "samples": ramp}
    out, told = drive(visit(gateway), {"do": "begin", "patient": False}, add, 20, add, {"do": "end"}, 60)
    assert out == [*ramp, *ramp, *[0.0] * (80 * 128 - 8192)]
    assert [(message["event"], message["position"]) for message in told] == [("run", 0), ("end", 8192)]
    assert told[1]["time"] == pytest.approx(8192 / 24000)


def test_the_player_neither_clicks_nor_hides_an_underrun(visit: Visits, gateway: Gateway) -> None:
    gaps: list[int | dict[str, Any]] = [chunk(1), 30, chunk(1), 30, chunk(2), 60, chunk(1), {"do": "end"}, 60]
    out, told = drive(visit(gateway), {"do": "begin", "patient": False}, *gaps)
    assert out[0] == 0.5  # no fade where the speech begins
    steps = [abs(b - a) for a, b in pairwise(out[: out.index(0.5) + 100 * 128])]
    assert max(steps) < 0.005  # of the fades; without them a gap is a step of 0.5
    # The second frame alone is less than is wanted after an underrun, so it waits for more.
    assert [(message["event"], message["position"]) for message in told] == [
        ("run", 0),
        ("stall", 1920),
        ("run", 1920),
        ("stall", 4 * 1920),
        ("run", 4 * 1920),
        ("end", 5 * 1920),
    ]


def test_the_player_stops_at_once(visit: Visits, gateway: Gateway) -> None:
    out, told = drive(visit(gateway), {"do": "begin", "patient": False}, chunk(4), 10, {"do": "stop"}, 10)
    assert max(abs(b - a) for a, b in pairwise(out)) < 0.005
    assert told[-1]["event"] == "stopped"
    assert told[-1]["position"] - 1280 == pytest.approx(120, abs=1)  # a fade of 5 ms
    assert set(out[1280 + 128 :]) == {0.0}
