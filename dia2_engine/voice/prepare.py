"""From recordings to a prefix: fade, encoded-silence cool-down, alignment, and the checks that keep it safe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from ..text.parser import Encode
from ..text.state_machine import TextMachine
from .plan import PrefixPlan, TimedWord, check_plan, plan_prefix, strip_control
from .voice import CODEC, EncodeAudio, PreparedVoice, VoiceSource, faded, padded


@dataclass(frozen=True)
class Preparation:
    """How prefixes are made. `plain` is the reference's way: no fade, no cool-down, clips encoded one by one."""

    sample_rate: int
    frame_samples: int
    cooldown_frames: int
    fade_ms: float
    plain: bool = False
    codec_sha256: str = ""  # recorded as provenance, if given

    @property
    def fade_samples(self) -> int:
        """Of the fade at the end of each clip."""
        return round(self.fade_ms * self.sample_rate / 1000)

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.frame_samples


def prepare_voice(source: VoiceSource, encode: Encode, encode_audio: EncodeAudio, how: Preparation) -> PreparedVoice:
    """Encode a voice's clips as one prefix.

    The cool-down is *encoded silence*: ordinary prefix audio with PAD text, so every id is legal and no BOS is ever
    fed in mid-stream. Audio and cool-down are encoded together, so that the codec sees one signal.
    """
    clips = []
    for clip in source.clips:
        seconds = len(clip.audio) / how.sample_rate
        late = [word for word in clip.words if word.start >= seconds]
        if late:
            raise ConfigError(
                f"voice {source.name!r}: {clip.source} lasts {seconds:.2f} s but its word {late[0].text!r} "
                f"starts at {late[0].start:.2f} s"
            )
        clips.append((clip.words, math.ceil(len(clip.audio) / how.frame_samples)))
    if how.plain:
        tokens = np.concatenate([encode_audio(clip.audio) for clip in source.clips], axis=1)
        clip_frames = tuple(frames for _, frames in clips)
    else:
        plan = plan_prefix(clips, encode, how.frame_rate, cooldown_frames=how.cooldown_frames)
        parts = [faded(clip.audio, how.fade_samples) for clip in source.clips]
        tokens = encode_audio(padded(parts, plan.clip_frames, how.frame_samples))
        clip_frames = plan.clip_frames
    provenance = {f"clip_{i + 1}_sha256": clip.sha256 for i, clip in enumerate(source.clips)}
    provenance["cooldown_frames"] = str(0 if how.plain else how.cooldown_frames)
    provenance["fade_ms"] = str(0 if how.plain else how.fade_ms)
    if how.codec_sha256:
        provenance[CODEC] = how.codec_sha256
    return PreparedVoice(source.name, tokens, tuple(clip.words for clip in source.clips), clip_frames, provenance)


def align_voice(
    voice: PreparedVoice, encode: Encode, machine: TextMachine, frame_rate: float, *, check: bool = True
) -> PrefixPlan:
    """The voice's words on its frames, in this checkpoint's tokens.

    Raises ConfigError, naming the voice, if feeding the prefix would not consume each word at its own step with
    nothing left over. `check=False` is for the reference's boundary, which has no such promise.
    """
    clips: Sequence[tuple[Sequence[TimedWord], int]] = list(zip(voice.words, voice.clip_frames, strict=True))
    try:
        plan = strip_control(plan_prefix(clips, encode, frame_rate, fit=False), machine.tokens)
        if check:
            check_plan(plan, machine, voice.tokens.shape[1])
    except ConfigError as error:
        raise ConfigError(f"voice {voice.name!r}: {error}") from None
    return plan
