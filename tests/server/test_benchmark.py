"""The load benchmark against a real server: that its report is complete, not how fast anything is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
SERVE = [sys.executable, str(ROOT / "benchmarks" / "serve.py")]


class Server(Protocol):
    grpc_url: str


def test_a_load_is_measured_and_reported(server: Server, tmp_path: Path) -> None:
    # Without a ramp: each caller's first request counts, however slow the machine is.
    loads = ["--closed", "2", "3", "--open", "4", "--seconds", "3", "--ramp", "0", "--processes", "2"]
    files = ["--json", str(tmp_path / "report.json"), "--html", str(tmp_path / "report.html")]
    command = [*SERVE, "--url", server.grpc_url, "--voice", "ben", "--note", "A <test>.", *loads, *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr

    report = json.loads((tmp_path / "report.json").read_text())
    assert [(row["kind"], row["value"]) for row in report["loads"]] == [("closed", 2), ("closed", 3), ("open", 4.0)]
    for row in report["loads"]:
        assert row["requests"] == row["ended"] > 0
        assert row["rejected"] == row["failed"] == row["unfinished"] == 0
        assert row["client_processes"] == 2
        assert row["client_busy"] > 0
        assert row["audio_s_per_s"] > 0
        for name in ("first_chunk_ms", "first_audible_ms", "real_time_factor"):
            assert 0 < row[name]["p50"] <= row[name]["p95"] <= row[name]["p99"]
        assert row["first_chunk_ms"]["p50"] <= row["first_audible_ms"]["p50"]
        assert f"| {row['kind']} {row['value']:g} | {row['requests']} |" in done.stdout
    assert {"cpu", "cores", "python", "tritonclient", "commit", "server"} <= set(report["machine"])
    assert report["settings"]["voice"] == "ben"
    assert report["notes"][0] == "A <test>."
    assert "perf_analyzer was not run" in report["notes"][1]

    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 6  # three for each kind of load
    assert page.count("<tr>") == 2 + len(report["loads"])
    for text in (report["machine"]["cpu"], report["measured"], "ben", "A &lt;test&gt;.", report["notes"][1]):
        assert text in page
    for outside in ("<script", "src=", "href=", "url(", "@import", "http://", "https://"):
        assert outside not in page


def test_requests_that_the_server_refuses_are_counted(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    loads = ["--closed", "1", "--open", "--seconds", "1", "--ramp", "0", "--processes", "1"]
    command = [*SERVE, "--url", server.grpc_url, "--voice", "nobody", *loads, "--json", str(file)]
    assert subprocess.run(command, capture_output=True, timeout=240).returncode == 0
    (row,) = json.loads(file.read_text())["loads"]
    assert row["failed"] == row["requests"] > 0
    assert row["first_chunk_ms"] is None
    assert "VOICE is 'nobody'" in row["messages"][0]


def test_what_cannot_be_measured_is_said_before_anything_starts() -> None:
    for options, said in [
        (["--url", "localhost:1", "--checkpoint", "x"], "do not go with it"),
        (["--closed", "0"], "above zero"),
        (["--html", "/no/such/folder/x.html"], "no folder"),
    ]:
        done = subprocess.run([*SERVE, *options], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert said in done.stderr
    done = subprocess.run([*SERVE, "--url", "localhost:1"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "localhost:1" in done.stderr
    assert "Traceback" not in done.stderr
