"""Stage `tokens`: the clips as the codec's codes, which is all that a language model is trained on.

    python -m training tokens DATA --codec mimi/ --out OUT

9 hours become 7 MB, so that what follows needs neither the clips nor the synthesiser.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from .codec.export import load_codec
from .codec.model import Codec
from .codec.shape import FRAME_SAMPLES
from .data.clips import Clip, read_shard, shards


@dataclass(frozen=True)
class Utterance:
    """One clip in codes."""

    text: str
    speaker: str
    onsets_s: list[float]  # of the words
    codes: NDArray[np.int16]  # [codebooks, frames]


def encode_shard(codec: Codec, clips: list[tuple[Clip, NDArray[np.int16]]], device: torch.device) -> list[Utterance]:
    """The clips of one shard in one pass: everything is causal, so what pads the shorter ones changes nothing."""
    frames = [-(-len(samples) // FRAME_SAMPLES) for _, samples in clips]
    audio = np.zeros((len(clips), max(frames) * FRAME_SAMPLES), dtype=np.float32)
    for row, (_, samples) in zip(audio, clips, strict=True):
        row[: len(samples)] = samples.astype(np.float32) / 32768
    codes = codec.encode(torch.from_numpy(audio).to(device)).to(torch.int16).cpu().numpy()  # [codebooks, B, frames]
    return [
        Utterance(clip.text, clip.speaker, clip.onsets_s, codes[:, index, : frames[index]])
        for index, (clip, _) in enumerate(clips)
    ]


def write(path: Path, utterances: list[Utterance]) -> None:
    """One file: codes int16 [codebooks, frames] of all clips in a row, their ends, and what is said as metadata."""
    ends = np.cumsum([utterance.codes.shape[1] for utterance in utterances])
    spoken = [[utterance.text, utterance.speaker, utterance.onsets_s] for utterance in utterances]
    codes = np.concatenate([utterance.codes for utterance in utterances], axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"codes": codes, "ends": ends}, path, metadata={"spoken": json.dumps(spoken)})


def read(path: Path) -> list[Utterance]:
    """What `write` wrote."""
    with safe_open(str(path), framework="np") as file:
        spoken = json.loads(file.metadata()["spoken"])
        parts = np.split(file.get_tensor("codes"), file.get_tensor("ends")[:-1], axis=1)
    return [
        Utterance(text, speaker, onsets_s, codes)
        for (text, speaker, onsets_s), codes in zip(spoken, parts, strict=True)
    ]


def encode_all(data: Path, codec_folder: Path, out: Path, device: torch.device, *, seconds: float = 1e9) -> None:
    """Every finished shard of both sets, or as many as there is time for, to OUT/test and OUT/train.safetensors."""
    codec = load_codec(codec_folder)[0].eval().to(device)
    deadline = time.monotonic() + seconds
    for which in ("test", "train"):
        utterances: list[Utterance] = []
        for index in shards(data, which):
            if time.monotonic() > deadline:
                break
            utterances += encode_shard(codec, list(read_shard(index)), device)
        if utterances:
            write(out / f"{which}.safetensors", utterances)
        frames = sum(utterance.codes.shape[1] for utterance in utterances)
        print(f"{which}: {len(utterances)} clips, {frames} frames", flush=True)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="training tokens", description="Write the codes of DATA's clips to OUT.")
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--codec", type=Path, required=True, help="exported codec")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    encode_all(args.data, args.codec, args.out, torch.device(args.device))
    return 0
