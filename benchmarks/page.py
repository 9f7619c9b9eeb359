"""The report of a load benchmark as one HTML page: no scripts, no network, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.charts import Spread, bar_chart, number_text, range_chart

Row = dict[str, Any]

KINDS = {
    "closed": ("Closed loop: concurrent streams", "concurrent streams"),
    "open": ("Open loop: Poisson arrivals", "requests per second"),
    "perf_analyzer": ("perf_analyzer, on the same server", "concurrent streams"),
}
SPREAD = "<br><small>p50 / p95 / p99</small>"
COLUMNS = (
    "requests",
    f"first chunk, ms{SPREAD}",
    f"first audible, ms{SPREAD}",
    "underruns<br><small>(streams)</small>",
    f"real-time factor{SPREAD}",
    "audio of<br>each, s",
    "audio<br>s per s",
    "rejected",
    "failed",
    "unfinished",
    "client<br>busy",
    "client lag<br><small>p99, ms</small>",
)
WIDE, HALF = 1180, 565  # pixels inside a figure
LEGEND = '<span class="how">dot p50, tick p95, ring p99</span>'
STYLE = Path(__file__).with_suffix(".css")


def render(report: dict[str, Any]) -> str:
    """The page. `report` is what benchmarks/serve.py writes as JSON."""
    rows: list[Row] = report["loads"]
    sections = [_section(kind, [row for row in rows if row["kind"] == kind]) for kind in KINDS]
    notes = "".join(f'<p class="card note">{escape(note)}</p>' for note in report["notes"])
    method = "".join(f"<li>{escape(line)}</li>" for line in report["method"])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>stream-dia2 through Triton, under load</title>
<style>
{STYLE.read_text()}</style>
</head>
<body>
<h1>stream-dia2 through Triton, under load</h1>
<p class="lead">{escape(report["subject"])}; measured {escape(report["measured"])}.</p>
{_tiles(rows)}
{notes}
{"".join(sections)}
<h2>Machine and versions</h2>
<div class="card">{_definitions(report["machine"])}</div>
<h2>Settings</h2>
<div class="card">{_definitions(report["settings"])}</div>
<h2>Method</h2>
<div class="card"><ul>{method}</ul></div>
</body>
</html>
"""


def _tiles(rows: Sequence[Row]) -> str:
    """What one looks for first."""
    tiles: list[tuple[str, str]] = []
    closed = sorted((row for row in rows if row["kind"] == "closed"), key=lambda row: float(row["value"]))
    if closed and closed[0]["first_chunk_ms"]:
        value = number_text(closed[0]["first_chunk_ms"]["p50"])
        tiles.append((f"{value} ms", f"to the first chunk, p50, at {_load(closed[0])} concurrent"))
    clean = [row for row in closed if row["ended"] == row["requests"] > 0 and not row["underruns"]]
    if clean:
        tiles.append((_load(clean[-1]), "concurrent streams: the most without an underrun or a lost request"))
    loads = [row for row in rows if row["kind"] != "perf_analyzer"]
    if loads:
        tiles.append((number_text(max(row["audio_s_per_s"] for row in loads)), "seconds of audio per second, at most"))
        busiest = max(row["client_busy"] for row in loads)
        tiles.append((f"{100 * busiest:.0f} %", "of one core: the busiest client process"))
    cells = "".join(f'<div class="card"><b>{escape(value)}</b>{escape(name)}</div>' for value, name in tiles)
    return f'<div class="tiles">{cells}</div>'


def _section(kind: str, rows: list[Row]) -> str:
    if not rows:
        return ""
    title, across = KINDS[kind]
    groups = [_load(row) for row in rows]
    figures = []
    latency: dict[str, list[Spread | None]] = {
        "first chunk": [row["first_chunk_ms"] for row in rows],
        "first audible": [row["first_audible_ms"] for row in rows],
    }
    if any(row["first_chunk_ms"] for row in rows):
        chart = range_chart("ms, logarithmic", across, groups, latency, width=WIDE)
        figures.append(
            _figure("Time to the first chunk, and to the first audible sample", chart, list(latency), wide=True)
        )
    factors: dict[str, list[Spread | None]] = {"real-time factor": [row["real_time_factor"] for row in rows]}
    if any(factors["real-time factor"]):
        chart = range_chart("real-time factor, logarithmic", across, groups, factors, width=HALF, line=1.0)
        figures.append(_figure("Real-time factor of a stream (below 1 it keeps up)", chart, list(factors)))
    throughput = [row["audio_s_per_s"] for row in rows]
    figures.append(
        _figure("Audio delivered", bar_chart("seconds of audio per second", across, groups, throughput, width=HALF), [])
    )
    return f'<h2>{title}</h2><div class="charts">{"".join(figures)}</div>{_table(across, rows)}{_messages(rows)}'


def _figure(title: str, chart: str, series: Sequence[str], *, wide: bool = False) -> str:
    keys = "".join(f'<span class="key s{number}">{escape(name)}</span>' for number, name in enumerate(series))
    legend = f'<div class="legend">{keys}{LEGEND}</div>' if series else ""
    return f'<figure class="{"wide" if wide else "half"}"><h3>{escape(title)}</h3>{legend}{chart}</figure>'


def _table(across: str, rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{name}</th>" for name in (across.replace(" ", "<br>", 1), *COLUMNS))
    body = "".join(f"<tr>{''.join(_cells(row))}</tr>" for row in rows)
    return f'<div class="card scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(row: Row) -> list[str]:
    lost = [_cell(str(row[name]), bad=row[name] > 0) for name in ("rejected", "failed", "unfinished")]
    return [
        _cell(_load(row)),
        _cell(str(row["requests"])),
        _cell(spread_text(row["first_chunk_ms"])),
        _cell(spread_text(row["first_audible_ms"])),
        _cell(f"{row['underruns']} ({row['streams_with_underruns']})", bad=row["underruns"] > 0),
        _cell(spread_text(row["real_time_factor"])),
        _cell(number_text(row["audio_s_mean"]) if row["audio_s_mean"] else "-"),
        _cell(number_text(row["audio_s_per_s"])),
        *lost,
        _cell(f"{100 * row['client_busy']:.0f} %" if "client_busy" in row else "-"),
        _cell(number_text(row["client_lag_p99_ms"]) if "client_busy" in row else "-"),
    ]


def _cell(text: str, *, bad: bool = False) -> str:
    return f"<td{' class=bad' if bad else ''}>{escape(text)}</td>"


def _messages(rows: Sequence[Row]) -> str:
    lines = [f"<li>{escape(f'{_load(row)}: {message}')}</li>" for row in rows for message in row["messages"]]
    return (
        f"<p>What was answered to requests that were rejected or failed:</p><ul>{''.join(lines)}</ul>" if lines else ""
    )


def spread_text(spread: Spread | None) -> str:
    return " / ".join(number_text(value) for value in spread.values()) if spread else "-"


def _load(row: Row) -> str:
    return f"{row['value']:g}"


def _definitions(values: dict[str, Any]) -> str:
    items = "".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(str(value))}</dd>" for name, value in values.items()
    )
    return f"<dl>{items}</dl>"
