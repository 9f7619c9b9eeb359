"""What a run of the laboratory keeps: one folder, with files of one JSON object a line that are only ever appended to.

    outputs.jsonl    first what was asked for; then voices in codes, and each output as soon as it is made
    heard.jsonl      what was heard in each output and clip, as soon as it is

A run that was stopped therefore goes on, and the two stages may run on different machines.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CLIP = "clip"  # in place of a protocol: a voice's own clip, through the codec

Codes = list[list[int]]  # [C][frames]
Key = tuple[str, int, str]


@dataclass(frozen=True)
class Output:
    """One request in one voice by one protocol, as codes or as a sound file."""

    protocol: str
    request: int  # its line in the file, from 0
    voice: str  # whose it should be
    text: str
    seed: int = 0
    reason: str = ""  # why it ended
    first_word_s: float = 0.0  # from where the request's first frame is due
    codes: Codes | None = None
    wav: str = ""  # in place of codes

    @property
    def key(self) -> Key:
        return self.protocol, self.request, self.voice


@dataclass(frozen=True)
class Heard:
    """What was made of an output; lists are as `measures` gives them."""

    protocol: str
    request: int
    voice: str
    words: str
    speaker: list[float]  # a unit vector
    start: list[float]
    rest: list[list[float]]
    audible_ms: float | None  # until the first audible sample; None: there is none
    seconds: float

    @property
    def key(self) -> Key:
        return self.protocol, self.request, self.voice


class Run:
    """The folder. Opening one makes it if need be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._outputs, self._heard = folder / "outputs.jsonl", folder / "heard.jsonl"

    def begin(self, settings: dict[str, Any]) -> None:
        """Say what is asked for. Raises ValueError if the folder holds what other settings gave."""
        settings = json.loads(json.dumps(settings))
        lines = _read(self._outputs)
        if not lines:
            _append(self._outputs, {"settings": settings})
        elif lines[0]["settings"] != settings:
            there = lines[0]["settings"]
            other = sorted(name for name in {*there, *settings} if there.get(name) != settings.get(name))
            raise ValueError(f"{self.folder} holds a run with another {', '.join(other)}; choose another folder")

    @property
    def settings(self) -> dict[str, Any]:
        lines = _read(self._outputs)
        if not lines:
            raise ValueError(f"{self.folder} holds no outputs; generate them first")
        settings: dict[str, Any] = lines[0]["settings"]
        return settings

    def outputs(self) -> dict[Key, Output]:
        """Outputs and clips so far."""
        made = (Output(**line["output"]) for line in _read(self._outputs) if "output" in line)
        return {output.key: output for output in made}

    def prefixes(self) -> dict[tuple[str, str], Codes]:
        """Behind which codes the outputs of a protocol and voice go on, for those that have any."""
        lines = [line["prefix"] for line in _read(self._outputs) if "prefix" in line]
        return {(line["protocol"], line["voice"]): line["codes"] for line in lines}

    def heard(self) -> dict[Key, Heard]:
        every = (Heard(**line) for line in _read(self._heard))
        return {heard.key: heard for heard in every}

    def add(self, output: Output) -> None:
        _append(self._outputs, {"output": asdict(output)})

    def add_prefix(self, protocol: str, voice: str, codes: Codes) -> None:
        _append(self._outputs, {"prefix": {"protocol": protocol, "voice": voice, "codes": codes}})

    def add_heard(self, heard: Heard) -> None:
        _append(self._heard, asdict(heard))


def _append(path: Path, value: dict[str, Any]) -> None:
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":  # a line that was cut off when the run was stopped
                file.write(b"\n")
        file.write(json.dumps(value, separators=(",", ":")).encode() + b"\n")


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines that are whole."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"}")]
