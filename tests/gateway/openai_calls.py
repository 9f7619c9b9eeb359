"""OpenAI's client, for the tests."""

from __future__ import annotations

import openai

from .conftest import Gateway


def speaks(gateway: Gateway, key: str = "any") -> openai.OpenAI:
    """A client that does not try again."""
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)
