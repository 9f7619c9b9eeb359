#!/usr/bin/env python3
"""Draw the delay grid at the boundary, from the protocol's own code: docs/images/delay-grid.png.

    python docs/images/make_delay_grid.py            # rewrites the picture (needs matplotlib)
    python docs/images/make_delay_grid.py --table    # prints the worked example of docs/boundary.md

Nothing is drawn from memory: `build_prefix` and `BoundaryStream` lay out the columns, and each cell is coloured by
what they say about it. The voice, the script and the model's decisions are made up.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from dia2_engine.boundary import BoundaryStream, StreamLimits  # noqa: E402
from dia2_engine.prefix import Prefix, build_prefix  # noqa: E402
from dia2_engine.text.parser import parse_script  # noqa: E402
from dia2_engine.text.state_machine import TextMachine, TextTokens  # noqa: E402
from dia2_engine.voice.plan import PrefixPlan, TimedWord, check_plan, plan_prefix  # noqa: E402

FRAME_RATE = 12.5  # frames a second: 80 ms each
DELAYS = (16, 18, 18)
BOS = 2048
CLIP_FRAMES, COOLDOWN_FRAMES = 34, 6  # 2.72 s of speech, 0.48 s of encoded silence: P = 40
CLIP_WORDS = (
    TimedWord("Thanks", 0.16, 0.56),
    TimedWord("for", 0.56, 0.80),
    TimedWord("calling,", 0.80, 1.36),
    TimedWord("this", 1.52, 1.72),
    TimedWord("is", 1.72, 1.92),
    TimedWord("Ben.", 2.00, 2.48),
)
SCRIPT = "[S1] Sure, give me a moment."
TOKENS = TextTokens(bos=1, new_word=2, pad=3, zero=7, spk1=10, spk2=11)
NAMES = {1: "bos", 2: "new", 3: "", 10: "[S1]", 11: "[S2]"}
COLUMNS_AFTER = 20  # shown after column P


def encode(text: str) -> list[int]:
    """One piece a word; ids are given out in order of appearance, and NAMES remembers the words."""
    ids = {name: token for token, name in NAMES.items()}
    for word in text.split():
        if word not in ids:
            ids[word] = 20 + len(NAMES)
            NAMES[ids[word]] = word
    return [ids[word] for word in text.split()]


@dataclass
class Example:
    """The whole example, played up to column P + COLUMNS_AFTER + 1."""

    plan: PrefixPlan
    prefix: Prefix
    stream: BoundaryStream
    text: list[tuple[int, int]]  # main and second id of each column
    runs: list[str]  # what each step costs: "warm-up", "replay", "text-only", "full"
    emitted: dict[int, int]  # step -> frame


def play() -> Example:
    """Prepare the voice and run the request, with a model that proposes a new word at every step."""
    machine = TextMachine(TOKENS, lookahead_words=2, max_padding=6, initial_padding=2)
    plan = plan_prefix([(CLIP_WORDS, CLIP_FRAMES)], encode, FRAME_RATE, cooldown_frames=COOLDOWN_FRAMES)
    check_plan(plan, machine, plan.frames)
    tokens = np.arange(len(DELAYS) * plan.frames).reshape(len(DELAYS), plan.frames)
    machine.entries.extend(plan.entries)
    prefix = build_prefix(machine, tokens, plan.new_word_steps, DELAYS, BOS)

    request = prefix.machine.copy()
    request.entries.extend(parse_script([SCRIPT], encode, TOKENS, FRAME_RATE))
    stream = BoundaryStream(
        machine=request,
        delays=DELAYS,
        bos=BOS,
        prefix=prefix,
        boundary="seamless",
        kick=True,
        limits=StreamLimits(max_steps=1500, max_frames=1500, tail_frames=6),
        fresh=TextMachine(TOKENS, lookahead_words=2, max_padding=6, initial_padding=2),
    )
    replay = stream.turn().columns
    text = [(int(row[0]), int(row[1])) for row in np.concatenate([prefix.columns, replay])]
    runs = ["warm-up"] * prefix.cut + ["replay"] * len(replay)
    emitted: dict[int, int] = {}
    while stream.step <= plan.frames + COLUMNS_AFTER:
        step = stream.step
        text.append((int(stream.column()[0]), int(stream.column()[1])))
        stream.take_action(True)
        runs.append("full" if stream.samples_audio() else "text-only")
        for frame in stream.advance():
            emitted[step] = frame
        stream.take_codes(step + 1, np.full(len(DELAYS), 1000 + step))
    return Example(plan, prefix, stream, text, runs, emitted)


def kind(example: Example, codebook: int, column: int) -> str:
    """What a cell holds: "bos", "fed", "forced" or "sampled"."""
    grid, frame = example.stream.grid, column - DELAYS[codebook]
    if frame < 0:
        return "bos"
    if grid.sampled(column)[codebook]:
        return "sampled"
    return "fed" if column < example.prefix.frames else "forced"


def table(example: Example) -> None:
    """The worked example in numbers."""
    plan, prefix = example.plan, example.prefix
    words = ", ".join(f"{e.text} {s}" for e, s in zip(plan.entries, plan.new_word_steps, strict=True))
    print(f"P {prefix.frames}   cut {prefix.cut}   word steps: {words}")
    print(f"starts of the request's words: {[(t, s, s - prefix.frames) for t, s in example.stream.words]}")
    print(f"steps: {[(run, example.runs.count(run)) for run in dict.fromkeys(example.runs)]}\n")
    print("column  main      second    cb0        cb1        step does   emits")
    for column in range(len(example.text)):
        main, second = (NAMES[token] or "pad" for token in example.text[column])
        cells = [f"{kind(example, c, column):8}{column - DELAYS[c]:2}" for c in (0, 1)]
        frame = example.emitted.get(column)
        emits = "" if frame is None else f"frame {frame}"
        print(f"{column:6}  {main:8}  {second:8}  {cells[0]} {cells[1]} {example.runs[column]:10}  {emits}")


COLOURS = {"bos": "#d9d9d9", "fed": "#9ecae1", "forced": "#f4a259", "sampled": "#74c476"}
LABELS = {
    "bos": "BOS: before the codebook's first frame",
    "fed": "prefix, columns before P",
    "forced": "prefix, teacher-forced: not heard yet at P",
    "sampled": "sampled by the model",
}
TEXT_COLOURS = {"prefix": "#dfe8f3", "request": "#d5efcf"}
RUN_COLOURS = {"warm-up": "#eeeeee", "replay": "#c6b7e2", "text-only": "#fbe3a4", "full": "#e8998d"}
FIRST_COLOUR = "#b3001b"
RUN_LABELS = {
    "warm-up": "fed once, at start-up (snapshot)",
    "replay": "fed in one pass",
    "text-only": "transformer only",
    "full": "+ depformer",
}


def draw(example: Example, path: Path) -> None:
    """The overview above, the columns around P with their frame numbers below."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "delay-grid", "font.family": "DejaVu Sans", "font.size": 9})
    from matplotlib import pyplot

    end = example.prefix.frames
    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(14, 8), height_ratios=(1, 1.35), layout="constrained", facecolor="white"
    )
    panel(above, example, 0, end + COLUMNS_AFTER, labels=False)
    panel(below, example, end - 3, end + COLUMNS_AFTER, labels=True)
    above.set_title(f"The whole stream so far: a voice of P = {end} frames, then the request", loc="left")
    below.set_title("Around column P: the number in a cell is its frame, column \N{MINUS SIGN} delay", loc="left")
    keys = [(COLOURS[name], label) for name, label in LABELS.items()]
    keys += [(TEXT_COLOURS["prefix"], "text of the prefix"), (TEXT_COLOURS["request"], "text of the request")]
    handles = [pyplot.Rectangle((0, 0), 1, 1, fc=colour, ec="#666666", label=label) for colour, label in keys]
    handles.append(pyplot.Rectangle((0, 0), 1, 1, fc="none", ec=FIRST_COLOUR, lw=2, label="the first frame heard"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)


def panel(axes: Any, example: Example, first: int, last: int, *, labels: bool) -> None:
    """One grid: text rows, codebook rows, and a strip that says what each step runs."""
    from matplotlib.patches import Rectangle

    end, cut = example.prefix.frames, example.prefix.cut
    rows = ["text, main", "text, second", "codebook 0", "codebook 1", "codebook 2 ..."]
    prefix_words = {piece for entry in example.plan.entries for piece in entry.tokens if piece != TOKENS.spk1}
    for column in range(first, last + 1):
        for stream, token in enumerate(example.text[column]):
            # Text of the request: all from column P+1 on, and before it what the second stream sees of its words.
            ours = column > end or (token >= 10 and stream == 1 and column > cut and token not in prefix_words)
            colour = TEXT_COLOURS["request" if ours else "prefix"]
            axes.add_patch(Rectangle((column, stream), 1, 1, fc=colour, ec="#888888", lw=0.4))
            if labels:
                axes.text(column + 0.5, stream + 0.5, NAMES[token], ha="center", va="center", fontsize=7.5)
        for codebook in range(len(DELAYS)):
            cell = kind(example, codebook, column)
            axes.add_patch(Rectangle((column, 2 + codebook), 1, 1, fc=COLOURS[cell], ec="#888888", lw=0.4))
            if labels:
                frame = column - DELAYS[codebook]
                axes.text(column + 0.5, 2.5 + codebook, frame, ha="center", va="center", fontsize=8)
        run = example.runs[column]
        axes.add_patch(Rectangle((column, 5.35), 1, 0.75, fc=RUN_COLOURS[run], ec="none"))
    for run in RUN_COLOURS:
        columns = [c for c in range(first, last + 1) if example.runs[c] == run]
        if columns:
            middle = (columns[0] + columns[-1] + 1) / 2
            axes.text(middle, 5.73, RUN_LABELS[run], ha="center", va="center", fontsize=7.5)
            axes.plot([columns[0]] * 2, [5.35, 6.1], color="#666666", lw=0.8)
    outline_frame(axes, end)
    marks(axes, example, first, labels=labels)
    axes.set_xlim(first, last + 1)
    axes.set_ylim(6.15, -1.15 if labels else -0.9)
    axes.set_yticks([row + 0.5 for row in range(5)] + [5.73], [*rows, "the step runs"])
    step = 1 if labels else 5
    ticks = [column for column in range(first, last + 1) if labels or column % step == 0]
    names = [column_name(column, end) if labels else str(column) for column in ticks]
    axes.set_xticks([column + 0.5 for column in ticks], names)
    axes.tick_params(length=0)
    axes.set_frame_on(False)


def column_name(column: int, end: int) -> str:
    return "P" if column == end else f"P{column - end:+d}".replace("-", "\N{MINUS SIGN}")


def outline_frame(axes: Any, frame: int) -> None:
    """The cells of the first emitted frame, one per codebook."""
    from matplotlib.patches import Rectangle

    for codebook, delay in enumerate(DELAYS):
        axes.add_patch(Rectangle((frame + delay, 2 + codebook), 1, 1, fill=False, ec=FIRST_COLOUR, lw=2, zorder=5))


def marks(axes: Any, example: Example, first: int, *, labels: bool) -> None:
    """Lines at the cut and at P; above the lower panel also where codebook 0 and the others are first sampled."""
    end, cut = example.prefix.frames, example.prefix.cut
    last_delay = max(DELAYS)
    lines = [(cut, f"cut = {cut}"), (end, "column P" if labels else f"P = {end}")]
    for column, name in lines:
        if column >= first:
            axes.plot([column] * 2, [-0.25, 6.1], color="black", lw=1.6, zorder=6)
            axes.text(column, -0.35, name, ha="center", va="bottom", fontweight="bold")
    notes = [(end + last_delay, f"frame P = {end}\nis complete" if labels else "first audio")]
    if labels:
        notes.append((end + DELAYS[0], "first sample\nof codebook 0"))
    for column, name in notes:
        axes.text(column + 0.5, -0.35, name, ha="center", va="bottom", color=FIRST_COLOUR)
        axes.plot([column + 0.5] * 2, [-0.25, 2], color=FIRST_COLOUR, lw=1, ls=":", zorder=6)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw the delay grid at the boundary.")
    parser.add_argument("--table", action="store_true", help="print the worked example instead")
    parser.add_argument("--out", type=Path, default=HERE / "delay-grid.png", help=".png or .svg")
    args = parser.parse_args(argv)
    example = play()
    if args.table:
        table(example)
    else:
        draw(example, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
