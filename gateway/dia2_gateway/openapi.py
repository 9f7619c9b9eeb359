"""The OpenAPI document of the HTTP part, at /openapi.json. Kept by hand; the tests send what it describes."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from .elevenlabs import openapi as elevenlabs
from .formats.audio_format import BY_NAME, OFFERS

Object = dict[str, Any]

ERROR: Object = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string", "description": "names the field, its value and what is allowed"},
                "type": {
                    "enum": [
                        "invalid_request_error",
                        "authentication_error",
                        "permission_error",
                        "rate_limit_error",
                        "server_error",
                    ]
                },
                "param": {"type": ["string", "null"], "description": "the field at fault"},
                "code": {"type": "string"},
            },
        }
    },
}

SPEECH: Object = {
    "type": "object",
    "required": ["model", "input"],
    "additionalProperties": False,
    "properties": {
        "model": {"type": "string", "pattern": r"\S", "description": "any name; there is one model"},
        "input": {"type": "string", "pattern": r"\S", "description": "the script, at least one word"},
        "voice": {
            "description": "a voice or an alias; null or absent: the server's default",
            "anyOf": [
                {"type": ["string", "null"]},
                {
                    "type": "object",
                    "required": ["id"],
                    "additionalProperties": False,
                    "properties": {"id": {"type": "string", "pattern": r"\S"}},
                },
            ],
        },
        "response_format": {"enum": [*BY_NAME, None], "description": "default mp3; OpenAI has the six short names"},
        "speed": {"enum": [1.0, None], "description": "the model speaks at its own pace"},
        "instructions": {"enum": ["", None], "description": "the model takes its manner from the voice"},
        "stream_format": {"enum": ["audio", "sse", None], "description": "bare audio, or events; default audio"},
        "seed": {"type": ["integer", "null"], "minimum": 0, "maximum": 2**63 - 1},
        "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2},
        "top_k": {"type": ["integer", "null"], "minimum": 0, "maximum": 10000},
        "cfg_scale": {"type": ["number", "null"], "minimum": 0, "maximum": 10},
    },
}

VOICES: Object = {
    "type": "object",
    "required": ["voices"],
    "properties": {
        "voices": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["id", "name", "default"],
                "properties": {
                    "id": {"type": "string"},
                    "name": {"type": "string"},
                    "default": {"type": "boolean"},
                    "alias_of": {"type": "string", "description": "only of aliases"},
                },
            },
        }
    },
}

MODEL: Object = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
    },
}

MODELS: Object = {
    "anyOf": [
        {
            "type": "object",
            "required": ["object", "data"],
            "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": MODEL}},
        },
        {
            "type": "array",
            "description": "for a request with the header xi-api-key",
            "items": {
                "type": "object",
                "required": ["model_id", "name"],
                "properties": {"model_id": {"type": "string"}, "name": {"type": "string"}},
            },
        },
    ]
}

EVENT: Object = {
    "oneOf": [
        {
            "type": "object",
            "required": ["type", "audio"],
            "properties": {
                "type": {"const": "speech.audio.delta"},
                "audio": {"type": "string", "contentEncoding": "base64"},
            },
        },
        {
            "type": "object",
            "required": ["type", "usage"],
            "properties": {
                "type": {"const": "speech.audio.done"},
                "usage": {
                    "type": "object",
                    "description": "characters in, frames of 80 ms out",
                    "required": ["input_tokens", "output_tokens", "total_tokens"],
                    "additionalProperties": {"type": "integer"},
                },
            },
        },
        {
            "type": "object",
            "description": "the back end failed after the first event",
            "required": ["type", "error"],
            "properties": {"type": {"const": "error"}, "error": ERROR["properties"]["error"]},
        },
    ]
}

REFUSALS = {
    400: "a field is wrong",
    401: "no key, or one that is not known",
    403: "a web page of an origin that is not allowed",
    404: "there is nothing of this name",
    413: "the body is too long",
    429: "the key's requests or streams are used up",
    502: "the back end failed",
    503: "no back end has room; try again later",
}
OF_SPEAKING = (400, 401, 403, 413, 429, 502, 503)  # what a request for audio may be refused with
RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "seconds"}}


def document() -> Object:
    binary: Object = {"schema": {"type": "string", "format": "binary"}}
    audio = {offer.content_type: binary for offer in OFFERS.values()}
    event = {"type": "string", "contentMediaType": "application/json", "contentSchema": reference("SpeechEvent")}
    item = {"type": "object", "required": ["data"], "properties": {"data": event}}
    events: Object = {"text/event-stream": {"itemSchema": item}}
    model: Object = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}, "example": "dia2"}
    error = reference("Error")
    either_error = {"anyOf": [error, reference("ElevenLabsError")]}
    paths: Object = {
        "/v1/audio/speech": {
            "post": operation("Speak a text", audio | events, OF_SPEAKING, error) | json_body("SpeechRequest")
        },
        "/v1/audio/voices": {
            "get": operation("The voices and their aliases", json_answer("Voices"), (401, 403, 503), error)
        },
        "/v1/models": {"get": operation("The models", json_answer("Models"), (401, 403), either_error)},
        "/v1/models/{model}": {
            "get": operation("One model", json_answer("Model"), (401, 403, 404), error) | {"parameters": [model]}
        },
    }
    for one in elevenlabs.OPERATIONS:
        described = operation(one.summary, one.content, one.statuses, reference("ElevenLabsError"))
        described["parameters"] = list(one.parameters)
        paths[one.path] = {one.method: described | (json_body(one.body) if one.body else {})}
    return {
        "openapi": "3.2.0",
        "info": {"title": "stream-dia2 gateway", "version": "1", "license": {"name": "Apache-2.0"}},
        "security": [{"bearer": []}, {"xi-api-key": []}],
        "paths": paths,
        "components": {
            "schemas": {
                "Error": ERROR,
                "SpeechRequest": SPEECH,
                "SpeechEvent": EVENT,
                "Voices": VOICES,
                "Models": MODELS,
                "Model": MODEL,
                **elevenlabs.SCHEMAS,
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "xi-api-key": {"type": "apiKey", "in": "header", "name": "xi-api-key"},
            },
        },
    }


def operation(summary: str, content: Object, statuses: tuple[int, ...], error: Object) -> Object:
    """An operation that answers with `content`, or refuses with one of `statuses` and the schema `error`."""
    responses: Object = {"200": {"description": "OK", "content": content}}
    for status in statuses:
        shape = reference("Error") if status == 403 else error  # pages are refused before it is known what they want
        responses[str(status)] = {"description": REFUSALS[status], "content": {"application/json": {"schema": shape}}}
        if status in (429, 503):
            responses[str(status)]["headers"] = RETRY_AFTER
    return {"summary": summary, "responses": responses}


def reference(schema: str) -> Object:
    return {"$ref": f"#/components/schemas/{schema}"}


def json_answer(schema: str) -> Object:
    return {"application/json": {"schema": reference(schema)}}


def json_body(schema: str) -> Object:
    return {"requestBody": {"required": True, "content": json_answer(schema)}}


async def get_document(request: Request) -> JSONResponse:
    return JSONResponse(document())


routes: list[BaseRoute] = [Route("/openapi.json", get_document)]
