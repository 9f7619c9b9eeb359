"""Two kinds of chart as SVG text, coloured by the page's style sheet (classes `s0`, `s1`, ... for series)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

Spread = Mapping[str, float]  # p50, p95, p99

HEIGHT = 280  # pixels of the screen, where the page is wide enough
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 18, 46
STEPS = (1, 2, 5, 10)


def range_chart(
    label: str,
    across: str,
    groups: Sequence[str],
    series: Mapping[str, Sequence[Spread | None]],
    *,
    width: float,
    line: float = 0.0,
) -> str:
    """p50 (dot), p95 (tick) and p99 (ring) of each series in each group, on a logarithmic axis.

    label: of the vertical axis, with its unit. across: of the groups. width: in pixels. line: a value to mark, or 0.
    """
    values = [value for spreads in series.values() for spread in spreads if spread for value in spread.values()]
    values = [value for value in (*values, line) if value > 0]
    low, high = round_step(min(values) * 0.95, up=False), round_step(max(values) * 1.05, up=True)

    def y(value: float) -> float:
        share = math.log(max(value, low) / low) / math.log(high / low)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    plot = _Plot(width, groups)
    parts = plot.frame(label, across, _log_ticks(low, high), y)
    if line:
        parts.append(f'<line class="mark" x1="{LEFT}" x2="{width - RIGHT}" y1="{y(line):.1f}" y2="{y(line):.1f}"/>')
    for number, (name, spreads) in enumerate(series.items()):
        for group, spread in enumerate(spreads):
            if spread is None:
                continue
            apart = min(72.0, plot.group_width / (len(series) + 0.5))
            x = plot.center(group) + (number - (len(series) - 1) / 2) * apart - 14
            p50, p95, p99 = (y(spread[name]) for name in ("p50", "p95", "p99"))
            told = ", ".join(f"{percent} {number_text(value)}" for percent, value in spread.items())
            parts.append(
                f'<g class="s{number}"><title>{escape(f"{name}, {across} {groups[group]}: {told}")}</title>'
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{p50:.1f}" y2="{p99:.1f}"/>'
                f'<line x1="{x - 6:.1f}" x2="{x + 6:.1f}" y1="{p95:.1f}" y2="{p95:.1f}"/>'
                f'<circle class="ring" cx="{x:.1f}" cy="{p99:.1f}" r="3.5"/>'
                f'<circle cx="{x:.1f}" cy="{p50:.1f}" r="4.5"/>'
                f'<text x="{x + 9:.1f}" y="{p50 + 4:.1f}">{number_text(spread["p50"])}</text></g>'
            )
    return plot.svg(f"{label} by {across}", parts)


def bar_chart(label: str, across: str, groups: Sequence[str], values: Sequence[float], *, width: float) -> str:
    """One bar for each group, from zero."""
    high = round_step(max([*values, 1e-9]) * 1.1, up=True)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - value / high * (HEIGHT - BOTTOM - TOP)

    plot = _Plot(width, groups)
    parts = plot.frame(label, across, [high * step / 5 for step in range(6)], y)
    bar = min(64.0, plot.group_width * 0.5)
    for group, value in enumerate(values):
        x, top = plot.center(group), y(value)
        parts.append(
            f'<g class="s0"><rect x="{x - bar / 2:.1f}" y="{top:.1f}" width="{bar:.1f}" '
            f'height="{HEIGHT - BOTTOM - top:.1f}" rx="3"/>'
            f'<text text-anchor="middle" x="{x:.1f}" y="{top - 5:.1f}">{number_text(value)}</text></g>'
        )
    return plot.svg(f"{label} by {across}", parts)


def number_text(value: float) -> str:
    """Three significant digits; whole numbers from 100 on."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text and abs(value) >= 10 else text


def round_step(value: float, *, up: bool) -> float:
    """The next of ..., 1, 2, 5, 10, 20, ... from the value on, upwards or downwards."""
    scale = 10.0 ** math.floor(math.log10(value))
    steps = [step * scale for step in STEPS]
    return min(s for s in steps if s >= value * 0.999999) if up else max(s for s in steps if s <= value * 1.000001)


def _log_ticks(low: float, high: float) -> list[float]:
    """All of ..., 1, 2, 5, 10, 20, ... from low to high; only the powers of ten where that is too many."""
    ticks = [low]
    while ticks[-1] < high * 0.999999:
        ticks.append(round_step(ticks[-1] * 1.01, up=True))
    return ticks if len(ticks) <= 9 else [tick for tick in ticks if round(math.log10(tick), 6) % 1 == 0]


class _Plot:
    """What both kinds have in common."""

    def __init__(self, width: float, groups: Sequence[str]) -> None:
        self.width, self.groups = width, groups
        self.group_width = (width - LEFT - RIGHT) / len(groups)

    def center(self, group: int) -> float:
        return LEFT + (group + 0.5) * self.group_width

    def frame(self, label: str, across: str, ticks: Sequence[float], y: Callable[[float], float]) -> list[str]:
        """Axes, grid and names."""
        parts, right = [], self.width - RIGHT
        for tick in ticks:
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
            parts.append(f'<text text-anchor="end" x="{LEFT - 8}" y="{y(tick) + 4:.1f}">{tick:,.6g}</text>')
        for group, name in enumerate(self.groups):
            x = self.center(group)
            parts.append(f'<text text-anchor="middle" x="{x:.1f}" y="{HEIGHT - BOTTOM + 19}">{escape(name)}</text>')
        center, middle = (LEFT + right) / 2, (TOP + HEIGHT - BOTTOM) / 2
        parts.append(f'<text class="axis" text-anchor="middle" x="{center}" y="{HEIGHT - 6}">{escape(across)}</text>')
        parts.append(
            f'<text class="axis" text-anchor="middle" transform="rotate(-90 12 {middle})" x="12" y="{middle}">'
            f"{escape(label)}</text>"
        )
        return parts

    def svg(self, name: str, parts: Sequence[str]) -> str:
        inner = "\n".join(parts)
        return f'<svg role="img" aria-label="{escape(name)}" viewBox="0 0 {self.width} {HEIGHT}">\n{inner}\n</svg>'
