"""Progress of a run: a line while it trains, and its curves as JSON and as a picture."""

from __future__ import annotations

import json
from pathlib import Path

_PANELS = (
    ("mel", "test_mel"),
    ("commitment", "phonemes"),
    ("adversarial", "features", "judges"),
    ("steps_per_s", "hours"),
)


def line(entry: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in sorted(entry.items(), key=lambda item: item[0] != "step"))


def write(folder: Path, history: list[dict[str, float]]) -> None:
    """`curves.json`, and `curves.png` where matplotlib is installed."""
    (folder / "curves.json").write_text(json.dumps(history), encoding="utf-8")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(10, 7), layout="constrained")
    for index, names in enumerate(_PANELS):
        axes = figure.add_subplot(2, 2, index + 1)
        for name in names:
            points = [(entry["step"], entry[name]) for entry in history if name in entry]
            if points:
                axes.plot(*zip(*points, strict=True), label=name)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(folder / "curves.png", dpi=100)
