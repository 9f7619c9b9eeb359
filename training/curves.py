"""Progress of a run: a line while it trains, and its curves as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


def line(entry: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in sorted(entry.items(), key=lambda item: item[0] != "step"))


def write(folder: Path, history: list[dict[str, float]], panels: Sequence[Sequence[str]]) -> None:
    """`curves.json`, and `curves.png` where matplotlib is installed: in each panel the curves of these names."""
    (folder / "curves.json").write_text(json.dumps(history), encoding="utf-8")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(10, 3.5 * rows), layout="constrained")
    for index, names in enumerate(panels):
        axes = figure.add_subplot(rows, 2, index + 1)
        for name in names:
            points = [(entry["step"], entry[name]) for entry in history if name in entry]
            if points:
                axes.plot(*zip(*points, strict=True), label=name)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(folder / "curves.png", dpi=100)
