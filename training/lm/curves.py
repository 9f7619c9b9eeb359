"""The curves of a run as JSON and as a picture: a panel for each head, and one for speed."""

from __future__ import annotations

import json
from pathlib import Path


def write(folder: Path, history: list[dict[str, float]]) -> None:
    """`curves.json`, and `curves.png` where matplotlib is installed. Heads are what has a `test_NAME`."""
    (folder / "curves.json").write_text(json.dumps(history), encoding="utf-8")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    tested = {name for entry in history for name in entry if name.startswith("test_")}
    heads = sorted(name.removeprefix("test_") for name in tested)
    panels = [*((head, f"test_{head}") for head in heads), ("steps_per_s",)]
    figure = Figure(figsize=(15, 3 * -(-len(panels) // 3)), layout="constrained")
    for index, names in enumerate(panels):
        axes = figure.add_subplot(-(-len(panels) // 3), 3, index + 1)
        for name in names:
            points = [(entry["step"], entry[name]) for entry in history if name in entry]
            if points:
                axes.plot(*zip(*points, strict=True), label=name)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(folder / "curves.png", dpi=100)
