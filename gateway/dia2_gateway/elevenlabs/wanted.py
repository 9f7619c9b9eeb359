"""What a caller asks for: ElevenLabs' fields, in a body, a query or a message of a WebSocket.

Fields that nobody knows are ignored, as ElevenLabs does, so that newer clients may send them. What would be heard, and
cannot be done, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from dia2_client import SessionOptions

from ..errors import BadRequest, NotFound
from ..fields import Fields, refused
from ..formats import AudioFormat
from ..speech import Speech

DEFAULT_FORMAT = "mp3_44100_128"  # ElevenLabs', as the next two
DEFAULT_INACTIVITY_S = 20
MAX_INACTIVITY_S = 180
SCHEDULE = "generation_config.chunk_length_schedule"
NORMALIZATION = "apply_text_normalization"
NORMALIZATIONS = ("auto", "on", "off")
BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def read(data: bytes | str) -> Fields:
    """The fields of a body or a message. Raises BadRequest if it is no JSON object."""
    return Fields.from_json(data)


@dataclass(frozen=True)
class SpeechRequest:
    """The body of a POST."""

    text: str
    options: SessionOptions

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Raises BadRequest for the first field that is wrong."""
        fields = read(body)
        check_manner(fields)
        check_language(fields.text("language_code"))
        fields.choice(NORMALIZATION, NORMALIZATIONS)
        return cls(
            text=fields.required_text("text"),
            options=SessionOptions(
                seed=fields.whole("seed"),
                temperature=fields.number("temperature"),
                top_k=fields.whole("top_k"),
                cfg_scale=fields.number("cfg_scale"),
            ),
        )


@dataclass(frozen=True)
class StreamOptions:
    """The query of a WebSocket."""

    format: AudioFormat
    seed: int | None
    inactivity_timeout_s: float
    auto_mode: bool  # each message is a phrase of its own
    sync_alignment: bool

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> Self:
        """Raises BadRequest for the first parameter that is wrong."""
        check_language(query.get("language_code"))
        Fields(query).choice(NORMALIZATION, NORMALIZATIONS)
        seed, inactivity_s = _whole(query, "seed"), _whole(query, "inactivity_timeout")
        if inactivity_s is not None and not 1 <= inactivity_s <= MAX_INACTIVITY_S:
            raise refused("inactivity_timeout", inactivity_s, f"1 to {MAX_INACTIVITY_S} seconds")
        return cls(
            format=audio_format(query),
            seed=seed,
            inactivity_timeout_s=inactivity_s or DEFAULT_INACTIVITY_S,
            auto_mode=_flag(query, "auto_mode"),
            sync_alignment=_flag(query, "sync_alignment"),
        )


def audio_format(query: Mapping[str, str]) -> AudioFormat:
    return AudioFormat.parse(query.get("output_format", DEFAULT_FORMAT), "output_format")


def check_voice(speech: Speech, voice_id: str) -> None:
    """Raises NotFound if no voice has that name, or alias."""
    try:
        speech.resolve_voice(voice_id)
    except BadRequest as error:
        raise NotFound(error.message.replace("voice is", "voice_id is", 1), field="voice_id") from None


def check_manner(fields: Fields) -> None:
    """How it is to be spoken: right in form, and nothing that would be heard. Raises BadRequest."""
    settings = _nested(fields, "voice_settings")
    for name in ("stability", "similarity_boost", "style"):
        settings.number(f"voice_settings.{name}")
    settings.boolean("voice_settings.use_speaker_boost")
    speed = settings.number("voice_settings.speed")
    if speed not in (None, 1):
        raise refused("voice_settings.speed", speed, "1.0; the model speaks at its own pace")
    schedule = _nested(fields, "generation_config").get(SCHEDULE)
    if schedule is not None and not (isinstance(schedule, list) and all(map(_is_scheduled, schedule))):
        raise refused(SCHEDULE, schedule, "a list of numbers of 50 to 500")
    dictionaries = fields.get("pronunciation_dictionary_locators")
    if dictionaries not in (None, []):
        raise refused("pronunciation_dictionary_locators", dictionaries, "none; there are no dictionaries")


def check_language(code: str | None) -> None:
    if code is not None and code.split("-")[0].lower() != "en":
        raise refused("language_code", code, "en; the model speaks English")


def _nested(fields: Fields, name: str) -> Fields:
    """The fields of an object, by their full names."""
    value: Any = fields.get(name)
    if value is not None and not isinstance(value, dict):
        raise refused(name, value, "an object")
    return Fields({f"{name}.{inner}": entry for inner, entry in (value or {}).items()})


def _is_scheduled(item: object) -> bool:
    return type(item) in (int, float) and 50 <= item <= 500  # type: ignore[operator]


def _whole(query: Mapping[str, str], name: str) -> int | None:
    value = query.get(name)
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal() and len(value) < 20):
        raise refused(name, value, "a whole number")
    return int(value)


def _flag(query: Mapping[str, str], name: str) -> bool:
    value = query.get(name, "false")
    if value.lower() not in BOOLEANS:
        raise refused(name, value, "true or false")
    return BOOLEANS[value.lower()]
