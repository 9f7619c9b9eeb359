"""Triton's perf_analyzer on the same server: run it, and read its profile export into the same figures."""

from __future__ import annotations

import base64
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from dia2_client import Chunk
from numpy.typing import NDArray

from benchmarks.figures import Listener, Outcome, summarise
from benchmarks.load import script

SCRIPTS = 200  # perf_analyzer goes through them in turn
WINDOWS = 3  # it measures until three windows agree, and is told to be content with any


class PerfAnalyzerError(Exception):
    """It did not run to its end; the message says why, in its own words."""


def run(program: str, url: str, streams: int, seed: int, voice: str | None, limit_s: float) -> bytes:
    """One run with this many concurrent streams, ended after `limit_s`. Returns the profile that it exports."""
    with tempfile.TemporaryDirectory() as scratch:
        scripts, profile = Path(scratch, "scripts.json"), Path(scratch, "profile.json")
        chosen = {"VOICE": [voice]} if voice else {}
        texts = [script(seed, index)[0] for index in range(SCRIPTS)]
        scripts.write_text(json.dumps({"data": [{"TEXT": [text], **chosen} for text in texts]}))
        command = [program, "-m", "dia2_stream", "-i", "grpc", "--async", "--streaming", "-u", url]
        command += ["--input-data", str(scripts), "--concurrency-range", str(streams)]
        command += ["--measurement-mode", "count_windows", "--measurement-request-count", str(max(10, streams))]
        command += ["--stability-percentage", "999", "--max-trials", str(WINDOWS)]
        command += ["--profile-export-file", str(profile)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise PerfAnalyzerError(f"perf_analyzer did not end within {limit_s:.0f} s") from None
        except OSError as error:
            raise PerfAnalyzerError(f"{program}: {error.strerror}") from None
        if done.returncode or not profile.exists():
            words = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise PerfAnalyzerError(f"perf_analyzer ended with status {done.returncode}: {' '.join(words)}")
        return profile.read_bytes()


def read_profile(profile: bytes, sample_rate: int, audible_dbfs: float) -> list[dict[str, Any]]:
    """The figures of each experiment in a profile export, over all of its requests."""
    rows = []
    # The export holds the raw bytes of tensors between quotes, so it is not always UTF-8.
    for experiment in json.loads(profile.decode("utf-8", "replace"), strict=False)["experiments"]:
        requests = experiment["requests"]
        bounds = experiment.get("window_boundaries") or [0]
        begin_ns = min([bounds[0], *(request["timestamp"] for request in requests)])
        window = (0.0, max((bounds[-1] - begin_ns) / 1e9, 1e-9))
        outcomes = [_outcome(request, begin_ns, sample_rate, window, audible_dbfs) for request in requests]
        rows.append(
            {"kind": "perf_analyzer", "value": experiment["experiment"]["value"], **summarise(outcomes, window)}
        )
    return rows


def _outcome(
    request: dict[str, Any], begin_ns: int, sample_rate: int, window: tuple[float, float], audible_dbfs: float
) -> Outcome:
    """One request. Without audio in the export (older versions), only its first response counts."""
    sent_ns, arrived_ns = request["timestamp"], request["response_timestamps"]
    listener = Listener(sample_rate, (sent_ns - begin_ns) / 1e9)
    outputs = request.get("response_outputs") or [{}] * len(arrived_ns)
    for at_ns, output in zip(arrived_ns, outputs, strict=True):
        audio = _samples(output)
        if audio.size:
            listener.add(Chunk(audio, (), None, (at_ns - sent_ns) / 1e9))
    if not listener.chunks and arrived_ns:
        listener.chunks.append(((arrived_ns[0] - sent_ns) / 1e9, 0))
    return listener.outcome("ended", window, audible_dbfs)


def _samples(output: dict[str, Any]) -> NDArray[np.float32]:
    """AUDIO_PCM16 is base64, since perf_analyzer asks for every output."""
    pcm = base64.b64decode(output.get("AUDIO_PCM16", ""))
    return np.frombuffer(pcm, "<i2").astype(np.float32) / 32767
