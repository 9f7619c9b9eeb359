"""The protocols: how a request joins its voice, by settings of the engine or, for the wrong ones, by what is done here.

The wrong protocols are what an earlier server did. Each is the seamless one with exactly one thing wrong, and none of
it is in the engine: `bos_cooldown` changes a stream before its first step, `undelayed` and `clamped` read another thing
from the stream's delay grid than the frames that the engine would decode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dia2_engine.boundary import BoundaryStream
from dia2_engine.config import EngineConfig
from dia2_engine.errors import ConfigError
from dia2_engine.grid import Ids
from dia2_engine.model.config import ModelConfig

Spoil = Callable[[BoundaryStream, EngineConfig, ModelConfig], None]
Deliver = Callable[[BoundaryStream, ModelConfig], Ids]


def leave(stream: BoundaryStream, config: EngineConfig, model: ModelConfig) -> None:
    """Nothing is wrong."""


def bos_cooldown(stream: BoundaryStream, config: EngineConfig, model: ModelConfig) -> None:
    """Columns of BOS in place of encoded silence, between the voice and the request.

    The last `cooldown_frames` columns before the request hold BOS in every codebook, where the voice's delayed tail
    was; and since nobody has encoded any silence, the model makes those frames. They are not sent, here as there.
    """
    assert stream.first_frame is not None
    end = stream.first_frame
    start = end - config.cooldown_frames
    if stream.step > start:
        raise ConfigError("bos-cooldown needs a voice whose columns before its cool-down are not fed at once")
    stream.grid.cells[:, start:end] = model.audio_bos
    stream.grid.forget(end, start)


def aligned(stream: BoundaryStream, model: ModelConfig) -> Ids:
    """The frames [C, n] that the engine decodes."""
    assert stream.first_frame is not None
    frames = range(stream.first_frame, stream.first_frame + stream.frames_out)
    return np.stack([stream.grid.frame(index) for index in frames], axis=1)


def undelayed(stream: BoundaryStream, model: ModelConfig) -> Ids:
    """The columns from the request's first to its last, as if each were a frame [C, n].

    So what the voice's tail still has to say comes first, and codebooks of different frames are decoded together.
    """
    assert stream.first_frame is not None
    return stream.grid.cells[:, stream.first_frame : stream.step + 1]


def clamped(stream: BoundaryStream, model: ModelConfig) -> Ids:
    """Frames [C, n] from the first for which there are columns behind the voice, whether or not they were sampled.

    The server's own buffer holds BOS where nothing was sampled, and `clamp` makes the largest codec id of it.
    """
    assert stream.first_frame is not None
    grid, first = stream.grid, stream.first_frame - stream.max_delay
    columns = np.arange(first, stream.first_frame + stream.frames_out) + grid.delays[:, None]  # [C, n]
    cells = np.take_along_axis(grid.cells, columns, axis=1)
    return np.clip(np.where(columns < grid.sample_from[:, None], model.audio_bos, cells), 0, model.codec_vocab - 1)


@dataclass(frozen=True)
class Protocol:
    """One way to join a request to its voice."""

    what: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the engine, in place of its defaults
    cloned: bool = True  # whether the request has its voice in front at all
    spoil: Spoil = leave
    deliver: Deliver = aligned


SEAMLESS = "seamless"
PROTOCOLS = {
    SEAMLESS: Protocol("the engine's default"),
    "no-cooldown": Protocol("no silence between the voice and the request", {"cooldown_frames": 0}),
    "no-kick": Protocol("the model chooses when to begin", {"kick": False}),
    "no-fade": Protocol("the voice's clip ends as it was cut", {"fade_ms": 0.0}),
    "reference": Protocol("what nari-labs/dia2 does", {"boundary": "reference"}),
    "no-prefix": Protocol("no voice: what the detectors see where there is nothing to see", cloned=False),
    "undelayed": Protocol("WRONG: columns are played as if they were frames", deliver=undelayed),
    "bos-cooldown": Protocol("WRONG: BOS in mid-stream in place of encoded silence", spoil=bos_cooldown),
    "clamp": Protocol("WRONG: special ids are clamped into the codec's range", deliver=clamped),
}
