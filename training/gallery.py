"""Stage `gallery`: a page with ten sentences in each voice, to listen to and to look at.

    python -m training gallery checkpoints/demo docs/demo

Settings come from the environment. The first seed is taken for each, nothing is chosen. Audio is MP3 of 64 kbit/s,
pictures are spectrograms.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dia2_engine import AudioChunk, Engine, EngineConfig, Event, Failed, Request
from dia2_engine.audio.io import load_clip
from dia2_engine.voice.voice import list_voices

Audio = NDArray[np.float32]

SENTENCES = (
    "Hello, how can I help you today?",
    "Your table by the window is ready at half past seven.",
    "I would like to change my booking to the second of March.",
    "Turn left at the old bridge, and the station is in front of you.",
    "We have twelve rooms left, and each costs 85 dollars.",
    "The children were playing in the garden when it began to rain.",
    "Could you please spell your last name for me?",
    "Nobody knows why the doctor went to Chicago without her coat.",
    "That is very kind of you, but I have already eaten.",
    "The weather will be sunny tomorrow, with a little wind from the sea.",
)
_BIT_RATE = 64_000
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } th, td { padding: .5rem; text-align: left; vertical-align: top; }
audio { width: 15rem; display: block; } img { width: 15rem; height: auto; display: block; }
.scroll { overflow-x: auto; }
"""


def speak(engine: Engine, text: str, voice: str) -> Audio:
    """[samples] of one request with seed 0."""
    chunks: list[Audio] = []

    def hear(_: object, event: Event) -> None:
        if isinstance(event, Failed):
            raise RuntimeError(f"{voice}: {event.error}")
        if isinstance(event, AudioChunk):
            chunks.append(event.audio)

    engine.start(engine.parse(Request(f"[S1] {text}", voice=voice, seed=0)))
    while engine.live:
        engine.step(engine.live, hear)
    return np.concatenate(chunks)


def write_mp3(path: Path, audio: Audio, rate: int) -> None:
    import av

    with av.open(str(path), "w", format="mp3") as container:
        stream = container.add_stream("mp3", rate=rate, layout="mono", bit_rate=_BIT_RATE)
        frame = av.AudioFrame.from_ndarray(audio[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


def write_spectrogram(path: Path, audio: Audio, rate: int) -> None:
    """0 to 8 kHz, 80 dB."""
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(4.8, 1.6), layout="constrained")
    axes = figure.add_subplot()
    floor = 1e-4 * np.random.default_rng(0).standard_normal(len(audio))  # silence has no logarithm
    axes.specgram(audio + floor, NFFT=512, noverlap=384, Fs=rate, vmin=-130, vmax=-50)
    axes.set_ylim(0, 8000)
    axes.set_yticks([0, 4000, 8000], ["0", "4", "8 kHz"])
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    Image.open(drawn).convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(path, optimize=True)


def page(voices: Sequence[str], rows: Sequence[tuple[str, str]]) -> str:
    """`rows` are what is said, and the name behind the voice's in the files."""

    def cell(voice: str, name: str, text: str) -> str:
        file, alt = f"{voice}-{name}", escape(f"Spectrogram of {voice}: {text}", quote=True)
        label = escape(f"{voice}: {text}", quote=True)
        return (
            f'<td><audio controls preload="none" src="{file}.mp3" aria-label="{label}"></audio>'
            f'<img loading="lazy" src="{file}.png" alt="{alt}"></td>'
        )

    head = "".join(f'<th scope="col">{escape(voice)}</th>' for voice in voices)
    body = "\n".join(
        f'<tr><th scope="row">{escape(text)}</th>{"".join(cell(voice, name, text) for voice in voices)}</tr>'
        for text, name in rows
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>The demo voice of stream-dia2</title><style>{_STYLE}</style>
<h1>The demo voice of stream-dia2</h1>
<p>What the checkpoint that ships with the project says, in the example voices. The first row is each voice's own clip,
through the codec: the only thing that the model hears of it. The first seed was taken for each sentence, nothing was
chosen. <code>python -m training gallery checkpoints/demo docs/demo</code> makes this page.</p>
<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>
{body}
</tbody></table></div>
</html>
"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="training gallery", description="Write OUT/index.html and what it shows.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--voices", default="voices", help="folder of voices; those of one speaker are shown")
    args = parser.parse_args(argv)
    from .check import through_codec

    given = {"checkpoint": args.checkpoint, "voices": args.voices, "device": "cpu", "slots": "1"}
    engine = Engine(EngineConfig.from_mapping(given))
    folders = {name: path for name, path in list_voices(Path(args.voices)).items() if "-and-" not in name}
    through = through_codec(engine.workshop.files.mimi, engine.model_config.codebooks)
    rate = engine.workshop.sample_rate
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [("(the voice's clip)", "clip"), *((text, f"{index:02d}") for index, text in enumerate(SENTENCES, start=1))]
    for voice, folder in folders.items():
        for text, name in rows:
            audio = through(load_clip(folder / f"{voice}.wav", rate)) if name == "clip" else speak(engine, text, voice)
            write_mp3(args.out / f"{voice}-{name}.mp3", audio, rate)
            write_spectrogram(args.out / f"{voice}-{name}.png", audio, rate)
            print(f"{voice}-{name}: {len(audio) / rate:.1f} s", flush=True)
    engine.close()
    (args.out / "index.html").write_text(page(list(folders), rows), encoding="utf-8")
    return 0
