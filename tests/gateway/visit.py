"""One user's visit to the web page, and the scripts with which the tests look into it."""

from __future__ import annotations

import io
import json
import re
import wave
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import ConsoleMessage, Page, WebSocket, expect

from tests.server.conftest import SETTLE_S

from .conftest import SEED

# Notes each word that is lit, with what the page's clock says by then.
WATCH = """
window.lit = [];
new MutationObserver((changes) => {
  for (const { target } of changes)
    if (target.classList?.contains("now") && target !== window.lit.at(-1)?.target)
      window.lit.push({ target, word: target.textContent, clock: parseFloat(clock.textContent) });
}).observe(document, { subtree: true, attributeFilter: ["class"] });
"""

# The worklet's processor, driven block by block: a stretch of loud sound that comes with gaps.
DRIVE = """async (steps) => {
  let processor;
  const told = [];
  Object.assign(globalThis, { sampleRate: 24000, currentTime: 0 });
  globalThis.AudioWorkletProcessor = class { port = { postMessage: (message) => told.push(message) } };
  globalThis.registerProcessor = (name, kind) => { processor = new kind(); };
  await import("/player-worklet.js");
  const out = [];
  for (const step of steps) {
    if (typeof step !== "number") {
      if (step.samples) step.samples = Float32Array.from(step.samples);
      processor.port.onmessage({ data: step });
      continue;
    }
    for (let block = 0; block < step; block++) {
      const output = new Float32Array(128);
      processor.process([], [[output]]);
      out.push(...output);
      globalThis.currentTime += 128 / sampleRate;
    }
  }
  return [out, told];
}"""

# Listens in front of the loudspeaker: a second worklet behind the page's own, which tells what passes.
TAP = """() => {
  const tap = `registerProcessor("tap", class extends AudioWorkletProcessor {
    process([[input]], [[output]]) {
      if (input) {
        this.port.postMessage(input.slice());
        output.set(input);
      }
      return true;
    }
  });`;
  const url = URL.createObjectURL(new Blob([tap], { type: "text/javascript" }));
  const { connect } = AudioNode.prototype;
  window.tapped = [];
  AudioWorkletNode.prototype.connect = async function (speaker) {
    await this.context.audioWorklet.addModule(url);
    const node = new AudioWorkletNode(this.context, "tap");
    node.port.onmessage = ({ data }) => window.tapped.push(...data);
    connect.call(this, node);
    connect.call(node, speaker);
  };
}"""


@dataclass
class Visit:
    """The page, as one user has it open."""

    page: Page
    refused: bool  # the server refuses something, and the browser says so
    complaints: list[str] = field(default_factory=list)  # of the browser: errors, and what the policy forbade
    sent: list[dict[str, Any]] = field(default_factory=list)  # over the WebSocket
    received: list[dict[str, Any]] = field(default_factory=list)  # but the audio

    def __post_init__(self) -> None:
        self.page.on("console", self._read)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("websocket", self._listen)

    def _read(self, message: ConsoleMessage) -> None:
        if not (self.refused and re.match(r"Failed to load resource|WebSocket connection to", message.text)):
            self.complaints.append(f"{message.type}: {message.text}")

    def _listen(self, socket: WebSocket) -> None:
        socket.on("framesent", lambda data: self.sent.append(json.loads(data)))
        socket.on("framereceived", self._note)

    def _note(self, data: str | bytes) -> None:
        if isinstance(data, str):
            self.received.append(json.loads(data))

    def write(self, text: str, seed: int = SEED) -> None:
        self.page.get_by_text("Options", exact=True).click()
        self.page.get_by_label("Seed").fill(str(seed))
        self.page.get_by_role("textbox", name="Text").fill(text)

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def says(self, pattern: str) -> str:
        """The status line, once it is so."""
        status = self.page.get_by_role("status")
        expect(status).to_have_text(re.compile(pattern), timeout=1000 * SETTLE_S)
        return status.inner_text()

    def complains(self, pattern: str) -> None:
        """The alert, once it is so."""
        expect(self.page.get_by_role("alert")).to_have_text(re.compile(pattern), timeout=1000 * SETTLE_S)

    def lights(self, count: int) -> None:
        """Wait until so many words have been lit."""
        expect(self.page.locator(".word.heard").nth(count - 1)).to_be_attached(timeout=1000 * SETTLE_S)

    def heard(self) -> list[str]:
        return self.page.locator(".word.heard").all_inner_texts()

    def download(self) -> bytes:
        """The samples of the WAV file that the page offers, as PCM16."""
        with self.page.expect_download() as download:
            self.press("Download WAV")
        assert re.fullmatch(r"[\w-]+-\d+\.wav", download.value.suggested_filename)
        with wave.open(io.BytesIO(Path(download.value.path()).read_bytes())) as file:
            assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 24000)
            samples: bytes = file.readframes(file.getnframes())
            return samples
