"""CPU time of the gateway's encoders, for each second of audio: a stream in pieces of 80 ms, as the engine makes it.

python benchmarks/formats.py [--clip voices/anna/anna.wav] [--seconds 60]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import soundfile as sf
from dia2_gateway.formats import AudioFormat, Encoder
from numpy.typing import NDArray

SOURCE_RATE, PIECE_SAMPLES = 24000, 1920
NAMES = [
    *("pcm_24000", "pcm_8000", "pcm_44100", "pcm_48000", "ulaw_8000", "alaw_8000", "wav_24000"),
    *("flac_24000", "flac_48000", "mp3_24000_128", "mp3_44100_128", "mp3_22050_32", "opus_48000_64", "aac_48000_96"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clip", type=Path, default=Path("voices/anna/anna.wav"), help="mono, 24 kHz; repeated")
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    clip, rate = sf.read(options.clip, dtype="float32")
    if rate != SOURCE_RATE or clip.ndim != 1:
        parser.error(f"{options.clip} has {rate} Hz and the shape {clip.shape}; mono at {SOURCE_RATE} Hz is needed")
    audio = np.resize(clip, options.seconds * SOURCE_RATE)

    print("| format | CPU, ms per second | longest piece, ms | kbit/s | first bytes of audio after |")
    print("|--|--|--|--|--|")
    for name in NAMES:
        print(row(AudioFormat.parse(name, "format"), audio))


def row(format: AudioFormat, audio: NDArray[np.float32]) -> str:
    encoder = Encoder(format, SOURCE_RATE)
    header_bytes = len(encoder.encode(audio[:0]))
    pieces_s: list[float] = []
    sent_bytes = first_ms = 0
    for start in range(0, len(audio), PIECE_SAMPLES):
        begin_s = time.process_time()
        sent_bytes += len(encoder.encode(audio[start : start + PIECE_SAMPLES]))
        pieces_s.append(time.process_time() - begin_s)
        if sent_bytes and not first_ms:
            first_ms = (start + PIECE_SAMPLES) * 1000 // SOURCE_RATE
    sent_bytes += len(encoder.finish()) + header_bytes
    seconds = len(audio) / SOURCE_RATE
    cpu_ms, longest_ms = 1000 * sum(pieces_s) / seconds, 1000 * max(pieces_s)
    return (
        f"| `{format.name}` | {cpu_ms:.1f} | {longest_ms:.1f} | {sent_bytes * 8 / seconds / 1000:.0f} | {first_ms} ms |"
    )


if __name__ == "__main__":
    main()
