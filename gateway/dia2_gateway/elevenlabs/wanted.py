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
SCHEDULE = range(50, 501)  # characters in an item of chunk_length_schedule
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
        check_normalization(fields.text("apply_text_normalization"))
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
        check_normalization(query.get("apply_text_normalization"))
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
    settings = _table(fields, "voice_settings")
    for name in ("stability", "similarity_boost", "style"):
        settings.number(name)
    if settings.get("use_speaker_boost") not in (None, True, False):
        raise refused("voice_settings.use_speaker_boost", settings.get("use_speaker_boost"), "true or false")
    speed = settings.number("speed")
    if speed not in (None, 1):
        raise refused("voice_settings.speed", speed, "1.0; the model speaks at its own pace")
    schedule = _table(fields, "generation_config").get("chunk_length_schedule")
    if schedule is not None and not (isinstance(schedule, list) and all(item in SCHEDULE for item in schedule)):
        raise refused("generation_config.chunk_length_schedule", schedule, "a list of whole numbers of 50 to 500")
    if fields.get("pronunciation_dictionary_locators"):
        value = fields.get("pronunciation_dictionary_locators")
        raise refused("pronunciation_dictionary_locators", value, "none; there are no dictionaries")


def flag(fields: Fields, name: str) -> bool:
    """A field that is false unless it is there."""
    value = fields.get(name)
    if value not in (None, True, False):
        raise refused(name, value, "true or false")
    return bool(value)


def check_language(code: str | None) -> None:
    if code is not None and code.split("-")[0].lower() != "en":
        raise refused("language_code", code, "en; the model speaks English")


def check_normalization(value: str | None) -> None:
    if value is not None and value not in NORMALIZATIONS:
        raise refused("apply_text_normalization", value, ", ".join(NORMALIZATIONS))


def _table(fields: Fields, name: str) -> Fields:
    value: Any = fields.get(name)
    if value is not None and not isinstance(value, dict):
        raise refused(name, value, "an object")
    return Fields(value or {})


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
