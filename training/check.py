"""Stage `check`: how well held-out clips are understood, and their voices known again, before and after the codec.

    python -m training check data/ --codec mimi/ --clips 100

The codec is run as the product runs it: encoded by `transformers`, decoded by the engine's streaming decoder, frame by
frame. A check is of the recogniser as much as of the audio: its rate on the source is the floor.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .data.clips import CLIP_RATE, Clip, read_shard, shards
from .recogniser import Listener, Recogniser, error_rate, normalise, word_errors

Audio = NDArray[np.float32]


def through_codec(folder: Path, codebooks: int) -> Callable[[Audio], Audio]:
    """Encode and decode with the first `codebooks` of a codec in the published format."""
    from dia2_engine.model.encoder import MimiEncoder
    from dia2_engine.model.mimi import MimiDecoder

    encoder = MimiEncoder.load(folder, codebooks=codebooks)
    decoder = MimiDecoder.load(folder, codebooks=codebooks)
    rows = torch.zeros(1, dtype=torch.int64)

    def code(audio: Audio) -> Audio:
        codes = torch.from_numpy(encoder.encode(audio))[None]
        state = decoder.new_state(1)
        frames = [decoder.decode(frame, state, rows) for frame in torch.split(codes, 1, dim=2)]
        decoded: Audio = torch.cat(frames, dim=1)[0, : len(audio)].numpy()
        return decoded

    return code


def held_out(data: Path, count: int) -> list[tuple[Clip, Audio]]:
    """The first clips of the test set."""
    every = (pair for index in shards(data, "test") for pair in read_shard(index))
    return [(clip, samples.astype(np.float32) / 32768) for clip, samples in islice(every, count)]


def check(
    clips: list[tuple[Clip, Audio]], versions: dict[str, Callable[[Audio], Audio]], cache: Path
) -> dict[str, Any]:
    """Word error rate of each version, and how like the source's its voice is, beside other clips' voices."""
    recogniser, listener = Recogniser(cache), Listener()
    voices = np.stack([listener.voice(audio, CLIP_RATE) for _, audio in clips])
    names = np.array([clip.speaker for clip, _ in clips])
    products, alike = voices @ voices.T, names[:, None] == names
    np.fill_diagonal(alike, False)
    found: dict[str, Any] = {
        "clips": len(clips),
        "same_speaker": float(products[alike].mean()) if alike.any() else None,
        "other_speaker": float(products[names[:, None] != names].mean()),
    }
    for name, version in versions.items():
        began = time.monotonic()
        made = [version(audio) for _, audio in clips]
        took = time.monotonic() - began
        errors, words, heard = [], [], []
        for (clip, _), audio in zip(clips, made, strict=True):
            heard.append(recogniser.hear(audio, CLIP_RATE))
            wanted = normalise(clip.text)
            errors.append(word_errors(wanted, normalise(heard[-1])))
            words.append(len(wanted))
        rate, low, high = error_rate(errors, words)
        similar = [float(voice @ listener.voice(audio, CLIP_RATE)) for voice, audio in zip(voices, made, strict=True)]
        found[name] = {
            "word_error_rate": rate,
            "interval_95": [low, high],
            "voice_similarity": float(np.mean(similar)),
            "real_time_factor": took / (sum(len(audio) for audio in made) / CLIP_RATE),
            "heard": [{"text": clip.text, "heard": text} for (clip, _), text in zip(clips, heard, strict=True)],
        }
        summary = {key: value for key, value in found[name].items() if key != "heard"}
        print(f"{name}: {json.dumps(summary)}", flush=True)
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="training check", description="Recognise DATA/test, as it is and coded.")
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--codec", type=Path, help="folder of the published format")
    parser.add_argument("--codebooks", type=int, nargs="+", default=[8])
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--out", type=Path, help="write all of it as JSON")
    args = parser.parse_args(argv)
    versions: dict[str, Callable[[Audio], Audio]] = {"source": lambda audio: audio}
    for codebooks in args.codebooks if args.codec else ():
        versions[f"{codebooks} codebooks"] = through_codec(args.codec, codebooks)
    found = check(held_out(args.data, args.clips), versions, args.data / "whisper")
    print(json.dumps({key: value for key, value in found.items() if not isinstance(value, dict)}))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0
