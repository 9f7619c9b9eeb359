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
CHARACTERS = 8  # of a text, at most
EXAMPLES = 4  # at most, right ones and wrong ones, for each route


def narrowed(document: dict[str, Any]) -> dict[str, Any]:
    """Right requests name a voice that there is, and are quickly spoken: a few characters, one format."""
    schemas = document["components"]["schemas"]
    speech = schemas["SpeechRequest"]["properties"]
    speech["input"]["maxLength"] = schemas["ElevenLabsSpeechRequest"]["properties"]["text"]["maxLength"] = CHARACTERS
    speech["voice"]["anyOf"][0] = {"enum": ["ben", None]}
    speech["voice"]["anyOf"][1]["properties"]["id"] = {"enum": ["anna"]}
    speech["response_format"]["enum"] = ["opus", None]
    paths = {}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            parameters = {parameter["name"]: parameter for parameter in operation.get("parameters", ())}
            if "output_format" in parameters:
                parameters["output_format"]["schema"] = {"enum": ["ulaw_8000"]}
                del parameters["voice_id"]  # or every wrong request would have a wrong voice before all
                path = path.replace("{voice_id}", "anna")
            operation["parameters"] = list(parameters.values())
        paths[path] = operations
    return {**document, "paths": paths}


# Every way to be wrong, which costs no speech, where routes that read the same body need it once; then any requests.
WRONG = ["--phases", "coverage", "--mode", "negative", "--exclude-path-regex", "(stream|with-timestamps)$"]
ANY = ["--phases", "examples,fuzzing", "--max-examples", str(EXAMPLES)]


@pytest.mark.parametrize("search", [WRONG, ANY], ids=["wrong", "any"])
def test_the_gateway_is_as_its_document_says(
    make_gateway: Callable[..., Gateway], tmp_path: Path, search: list[str]
) -> None:
    key = {"sha256": hashlib.sha256(KEY.encode()).hexdigest(), "characters_per_request": CHARACTERS}
    gateway = make_gateway(keys={"tester": key})
    document = httpx2.get(f"{gateway.url}/openapi.json").raise_for_status().json()
    (tmp_path / "openapi.json").write_text(json.dumps(narrowed(document)))
    command = [str(Path(sys.executable).parent / "schemathesis"), "--no-color", "run", "openapi.json", *search]
    command += ["--url", gateway.url, "--header", f"Authorization: Bearer {KEY}", "--generation-deterministic"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    gateway.settle()
