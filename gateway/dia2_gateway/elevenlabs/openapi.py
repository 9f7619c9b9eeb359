"""ElevenLabs' part of the OpenAPI document: its schemas, and what there is to know of each operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..formats.audio_format import BY_NAME, OFFERS
from .http import NDJSON, SPEAK
from .wanted import DEFAULT_FORMAT, NORMALIZATIONS

Object = dict[str, Any]

ERROR: Object = {
    "type": "object",
    "required": ["detail"],
    "properties": {
        "detail": {
            "type": "object",
            "required": ["status", "code", "message"],
            "properties": {
                "status": {"type": "string", "description": "ElevenLabs' name of the error, where it has one"},
                "code": {"type": "string", "description": "the gateway's name of the error"},
                "message": {"type": "string", "description": "names the field, its value and what is allowed"},
                "param": {"type": "string", "description": "the field at fault"},
            },
        }
    },
}

NUMBER: Object = {"type": ["number", "null"], "description": "has no effect"}
IGNORED: Object = {"description": "has no effect"}

SPEECH: Object = {
    "type": "object",
    "required": ["text"],
    "properties": {
        "text": {"type": "string", "pattern": r"\S", "description": "the script, at least one word"},
        "seed": {"type": ["integer", "null"], "minimum": 0, "maximum": 2**63 - 1},
        "voice_settings": {
            "type": ["object", "null"],
            "properties": {
                "stability": NUMBER,
                "similarity_boost": NUMBER,
                "style": NUMBER,
                "use_speaker_boost": {"type": ["boolean", "null"], "description": "has no effect"},
                "speed": {"enum": [1.0, None], "description": "the model speaks at its own pace"},
            },
        },
        "language_code": {"enum": ["en", "en-US", "en-GB", None], "description": "any code of English"},
        "apply_text_normalization": {"enum": [*NORMALIZATIONS, None], "description": "has no effect"},
        "pronunciation_dictionary_locators": {"type": ["array", "null"], "maxItems": 0},
        "model_id": IGNORED,
        "previous_text": IGNORED,
        "next_text": IGNORED,
        "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2, "description": "not ElevenLabs'"},
        "top_k": {"type": ["integer", "null"], "minimum": 0, "maximum": 10000, "description": "not ElevenLabs'"},
        "cfg_scale": {"type": ["number", "null"], "minimum": 0, "maximum": 10, "description": "not ElevenLabs'"},
    },
}

ALIGNMENT: Object = {
    "type": ["object", "null"],
    "description": "when each character is spoken, in seconds from the beginning",
    "required": ["characters", "character_start_times_seconds", "character_end_times_seconds"],
    "properties": {
        "characters": {"type": "array", "items": {"type": "string"}},
        "character_start_times_seconds": {"type": "array", "items": {"type": "number"}},
        "character_end_times_seconds": {"type": "array", "items": {"type": "number"}},
    },
}

TIMED_AUDIO: Object = {
    "type": "object",
    "required": ["audio_base64", "alignment", "normalized_alignment"],
    "properties": {
        "audio_base64": {"type": "string", "contentEncoding": "base64"},
        "alignment": ALIGNMENT,
        "normalized_alignment": ALIGNMENT,
    },
}

VOICE: Object = {
    "type": "object",
    "required": ["voice_id", "name", "category", "labels"],
    "properties": {
        "voice_id": {"type": "string"},
        "name": {"type": "string"},
        "category": {"const": "cloned"},
        "labels": {
            "type": "object",
            "description": "`default`, or `alias_of`",
            "additionalProperties": {"type": "string"},
        },
    },
}

VOICES: Object = {
    "type": "object",
    "required": ["voices", "has_more", "total_count"],
    "properties": {
        "voices": {"type": "array", "items": {"$ref": "#/components/schemas/ElevenLabsVoice"}},
        "has_more": {"const": False},
        "total_count": {"type": "integer"},
    },
}

SCHEMAS: dict[str, Object] = {
    "ElevenLabsError": ERROR,
    "ElevenLabsSpeechRequest": SPEECH,
    "ElevenLabsTimedAudio": TIMED_AUDIO,
    "ElevenLabsVoice": VOICE,
    "ElevenLabsVoices": VOICES,
}

VOICE_ID: Object = {
    "name": "voice_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
    "example": "anna",
    "description": "a voice or an alias",
}
OUTPUT_FORMAT: Object = {
    "name": "output_format",
    "in": "query",
    "schema": {"enum": list(BY_NAME), "default": DEFAULT_FORMAT},
}


@dataclass(frozen=True)
class Operation:
    """One of them; its errors have the schema `ElevenLabsError`."""

    method: str
    path: str
    summary: str
    content: Object  # of the answer, by content type
    statuses: tuple[int, ...]  # with which it may be refused
    body: str | None = None  # the schema of the request's
    parameters: tuple[Object, ...] = ()


def _json(schema: str) -> Object:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _speaking(path: str, summary: str, content: Object) -> Operation:
    statuses = (400, 401, 403, 404, 413, 429, 502, 503)
    return Operation("post", path, summary, content, statuses, "ElevenLabsSpeechRequest", (VOICE_ID, OUTPUT_FORMAT))


AUDIO: Object = {offer.content_type: {"schema": {"type": "string", "format": "binary"}} for offer in OFFERS.values()}
LINES: Object = {NDJSON: {"itemSchema": {"$ref": "#/components/schemas/ElevenLabsTimedAudio"}}}

OPERATIONS = (
    _speaking(SPEAK, "Speak a text", AUDIO),
    _speaking(f"{SPEAK}/stream", "Speak a text: the same", AUDIO),
    _speaking(
        f"{SPEAK}/with-timestamps", "Speak a text, with the times of its characters", _json("ElevenLabsTimedAudio")
    ),
    _speaking(f"{SPEAK}/stream/with-timestamps", "Speak a text, with times, piece by piece", LINES),
    Operation("get", "/v1/voices", "The voices and their aliases", _json("ElevenLabsVoices"), (401, 403, 503)),
    Operation("get", "/v2/voices", "The voices and their aliases", _json("ElevenLabsVoices"), (401, 403, 503)),
    Operation(
        "get", "/v1/voices/{voice_id}", "One voice", _json("ElevenLabsVoice"), (401, 403, 404, 503), None, (VOICE_ID,)
    ),
)
