"""Requests made up from the gateway's own OpenAPI document, right ones and wrong ones."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.gateway.conftest import Gateway

pytestmark = pytest.mark.server

KEY = "dia2_test"
EXAMPLES = 5  # at most, of each route and phase of the search


def narrowed(document: dict[str, Any]) -> dict[str, Any]:
    """Right requests name a voice that there is, and one of few formats: each right request is spoken."""
    speech = document["components"]["schemas"]["SpeechRequest"]["properties"]
    speech["voice"]["anyOf"][0] = {"enum": ["ben", None]}
    speech["voice"]["anyOf"][1]["properties"]["id"] = {"enum": ["anna"]}
    speech["response_format"]["enum"] = ["opus", None]
    return document


def test_the_gateway_is_as_its_document_says(make_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
    gateway = make_gateway(keys={"tester": {"sha256": hashlib.sha256(KEY.encode()).hexdigest()}})
    document = httpx2.get(f"{gateway.url}/openapi.json").raise_for_status().json()
    (tmp_path / "openapi.json").write_text(json.dumps(narrowed(document)))
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        "--no-color",
        "run",
        "openapi.json",
        "--url",
        gateway.url,
    ]
    command += ["--header", f"Authorization: Bearer {KEY}", "--phases", "examples,coverage,fuzzing"]
    command += ["--max-examples", str(EXAMPLES), "--generation-deterministic"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    gateway.settle()
