"""What ElevenLabs' answers look like."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from dia2_client import VoiceInfo

from ..errors import ApiError
from .alignment import Character

MODEL_ID = "dia2"
POLICY_VIOLATION = 1008  # the close code of a WebSocket whose caller is at fault
INTERNAL_ERROR = 1011

# ElevenLabs' names of errors, by ours. Clients look at the status; these are for people and logs.
STATUSES = {
    "unauthorized": "invalid_api_key",
    "too_many_requests": "too_many_concurrent_requests",
    "overloaded": "system_busy",
}


def error_status(error: ApiError) -> str:
    """The name that ElevenLabs has for an error."""
    if error.field == "voice_id":
        return "voice_not_found"
    return STATUSES.get(error.code, error.code)


def error_body(error: ApiError) -> dict[str, Any]:
    """Of an HTTP answer."""
    detail = {"status": error_status(error), "code": error.code, "message": error.message}
    if error.field is not None:
        detail["param"] = error.field
    return {"detail": detail}


def error_message(error: ApiError) -> dict[str, Any]:
    """Of a WebSocket."""
    return {"message": error.message, "error": error_status(error), "code": close_code(error)}


def close_code(error: ApiError) -> int:
    return POLICY_VIOLATION if error.status < 500 else INTERNAL_ERROR


def audio_message(audio: bytes, aligned: Sequence[Character], start_ms: int, *, absolute: bool) -> dict[str, Any]:
    """A piece of audio, which begins at `start_ms` of the utterance, on a WebSocket.

    Times count from the beginning of this piece; those of `normalizedAlignment` from that of the utterance if they
    are to be `absolute`.
    """
    return {
        "audio": base64.b64encode(audio).decode("ascii"),
        "isFinal": None,
        "alignment": _alignment_ms(aligned, start_ms),
        "normalizedAlignment": _alignment_ms(aligned, 0 if absolute else start_ms),
    }


def final_message() -> dict[str, Any]:
    """No more audio of this utterance comes on a WebSocket."""
    return {"audio": None, "isFinal": True, "alignment": None, "normalizedAlignment": None}


def timed_audio(audio: bytes, aligned: Sequence[Character]) -> dict[str, Any]:
    """Audio with the time of its characters over HTTP, in seconds from the beginning of the utterance."""
    alignment = {
        "characters": [character.text for character in aligned],
        "character_start_times_seconds": [character.start_ms / 1000 for character in aligned],
        "character_end_times_seconds": [(character.start_ms + character.duration_ms) / 1000 for character in aligned],
    }
    shown = alignment if aligned else None
    return {
        "audio_base64": base64.b64encode(audio).decode("ascii"),
        "alignment": shown,
        "normalized_alignment": shown,
    }


def voice(info: VoiceInfo) -> dict[str, Any]:
    return _voice(info.name, {"default": "true" if info.default else "false"})


def alias(name: str, target: str) -> dict[str, Any]:
    """A further name of a voice, from the configuration."""
    return _voice(name, {"alias_of": target})


def _voice(name: str, labels: dict[str, str]) -> dict[str, Any]:
    return {
        "voice_id": name,
        "name": name,
        "category": "cloned",
        "labels": labels,
        "description": None,
        "preview_url": None,
        "settings": None,
        "available_for_tiers": [],
        "high_quality_base_model_ids": [MODEL_ID],
    }


def model(characters: int | None) -> dict[str, Any]:
    """The one model; `characters` is the longest text of a request, None without a limit."""
    return {
        "model_id": MODEL_ID,
        "name": "Dia2",
        "description": "Streaming dialogue text-to-speech of Nari Labs, served by stream-dia2",
        "can_be_finetuned": False,
        "can_do_text_to_speech": True,
        "can_do_voice_conversion": False,
        "can_use_style": False,
        "can_use_speaker_boost": False,
        "serves_pro_voices": False,
        "requires_alpha_access": False,
        "token_cost_factor": 1.0,
        "max_characters_request_free_user": characters,
        "max_characters_request_subscribed_user": characters,
        "maximum_text_length_per_request": characters,
        "languages": [{"language_id": "en", "name": "English"}],
    }


def _alignment_ms(aligned: Sequence[Character], origin_ms: int) -> dict[str, Any] | None:
    if not aligned:
        return None
    return {
        "chars": [character.text for character in aligned],
        "charStartTimesMs": [character.start_ms - origin_ms for character in aligned],
        "charDurationsMs": [character.duration_ms for character in aligned],
    }
