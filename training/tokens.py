"""Stage `tokens`: the clips as the codec's codes, which is all that a language model is trained on.

    python -m training tokens DATA --codec mimi/

An hour becomes 0.7 MB, so that what follows needs neither the clips nor the synthesiser. A clip begins at a random
place within its first frame, or all speech would have the same phase; behind it, some encoded silence. Another phase
gives other codes for the same speech, so `--phases` multiplies what is trained on for the price of encoding. A file
names the shards that it holds, so the same command goes on with those that were finished since.
"""

from __future__ import annotations

import argparse
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from .codec.export import load_codec
from .codec.model import Codec
from .codec.shape import FRAME_SAMPLES, SAMPLE_RATE
from .data.clips import Clip, encoded, read_shard, shards

SILENCE_FRAMES = 8
_FILE_SHARDS = 256  # 8 MB or so


@dataclass(frozen=True)
class Utterance:
    """One clip in codes."""

    text: str
    speaker: str
    onsets_s: list[float]  # of the words, from the first frame
    end_s: float  # of the speech
    codes: NDArray[np.int16]  # [codebooks, frames], with SILENCE_FRAMES or more behind the speech


def encode_shard(
    codec: Codec, clips: list[tuple[Clip, NDArray[np.int16]]], silences: list[int], device: torch.device
) -> list[Utterance]:
    """The clips of one shard in one pass, each behind its samples of silence, less than a frame.

    Everything is causal, so what pads the shorter ones changes nothing.
    """
    lengths = [lead + len(samples) for lead, (_, samples) in zip(silences, clips, strict=True)]
    frames = [-(-length // FRAME_SAMPLES) + SILENCE_FRAMES for length in lengths]
    audio = np.zeros((len(clips), max(frames) * FRAME_SAMPLES), dtype=np.float32)
    for row, lead, (_, samples) in zip(audio, silences, clips, strict=True):
        row[lead : lead + len(samples)] = samples.astype(np.float32) / 32768
    codes = codec.encode(torch.from_numpy(audio).to(device)).to(torch.int16).cpu().numpy()  # [codebooks, B, frames]
    utterances = []
    for index, (clip, _) in enumerate(clips):
        onsets_s = [round(onset_s + silences[index] / SAMPLE_RATE, 4) for onset_s in clip.onsets_s]
        end_s = round(lengths[index] / SAMPLE_RATE, 4)
        utterances.append(Utterance(clip.text, clip.speaker, onsets_s, end_s, codes[:, index, : frames[index]]))
    return utterances


def write(path: Path, utterances: list[Utterance]) -> None:
    """One file: the codes of all clips in a row, packed; their ends; and what is said, as compressed JSON."""
    ends = np.cumsum([utterance.codes.shape[1] for utterance in utterances])
    spoken = [[utterance.text, utterance.speaker, utterance.onsets_s, utterance.end_s] for utterance in utterances]
    codes = np.concatenate([utterance.codes for utterance in utterances], axis=1)
    low, high = _pack(codes)
    said = np.frombuffer(zlib.compress(json.dumps(spoken).encode("utf-8")), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    save_file({"low": low, "high": high, "ends": ends, "spoken": said}, unfinished)
    os.replace(unfinished, path)


def read(path: Path) -> list[Utterance]:
    """What `write` wrote."""
    stored = load_file(path)
    spoken = json.loads(zlib.decompress(stored["spoken"].tobytes()))
    parts = np.split(_unpack(stored["low"], stored["high"]), stored["ends"][:-1], axis=1)
    return [
        Utterance(text, speaker, onsets_s, end_s, part)
        for (text, speaker, onsets_s, end_s), part in zip(spoken, parts, strict=True)
    ]


def _pack(codes: NDArray[np.int16]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """10 bits a code: the lower 8, and the upper 2 of four neighbours together. Columns are padded to fours."""
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 4)))
    fours = (padded >> 8).astype(np.uint8).reshape(len(codes), -1, 4)
    high = (fours << np.array([0, 2, 4, 6], dtype=np.uint8)).sum(-1, dtype=np.uint8)
    return (codes & 0xFF).astype(np.uint8), high


def _unpack(low: NDArray[np.uint8], high: NDArray[np.uint8]) -> NDArray[np.int16]:
    twos = (high[..., None] >> np.array([0, 2, 4, 6], dtype=np.uint8)) & 3
    upper = twos.reshape(len(low), -1)[:, : low.shape[1]].astype(np.int16)
    codes: NDArray[np.int16] = low.astype(np.int16) | upper << 8
    return codes


def leads(shard: int, clips: int, phase: int) -> list[int]:
    """For each clip of a shard, how many samples of silence stand in front of it."""
    drawn: list[int] = np.random.default_rng([shard, phase]).integers(FRAME_SAMPLES, size=clips).tolist()
    return drawn


def _unencoded(data: Path, out: Path, which: str) -> list[Path]:
    """Finished shards that no file holds, in order: a gap hides what is behind it."""
    first = encoded(out, which)
    later = [index for index in shards(data, which) if int(index.stem) >= first]
    return [index for place, index in enumerate(later, start=first) if int(index.stem) == place]


def encode_all(data: Path, codec: Codec, out: Path, device: torch.device, phases: int = 1) -> dict[str, int]:
    """Every finished shard of both sets that OUT does not hold; returns utterances. `phases` is for `train`."""
    clips = {"test": 0, "train": 0}
    for which in clips:
        left = _unencoded(data, out, which)
        while left:
            group, left = left[:_FILE_SHARDS], left[_FILE_SHARDS:]
            utterances: list[Utterance] = []
            for index in group:
                pairs = list(read_shard(index))
                for phase in range(phases if which == "train" else 1):
                    utterances += encode_shard(codec, pairs, leads(int(index.stem), len(pairs), phase), device)
            write(out / f"{which}-{group[0].stem}-{group[-1].stem}.safetensors", utterances)
            clips[which] += len(utterances)
    return clips


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="training tokens", description="Write the codes of DATA's clips to DATA/tokens."
    )
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--codec", type=Path, required=True, help="exported codec")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--phases", type=int, default=4, help="how often each clip for training is encoded")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    codec = load_codec(args.codec)[0].eval().to(device)
    clips = encode_all(args.data, codec, args.data / "tokens", device, args.phases)
    print(", ".join(f"{which}: {count} utterances" for which, count in clips.items()))
    return 0
