"""What a run says about its protocols: rates with their 95 % intervals, as values and as a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from training.recogniser import error_rate, normalise, word_errors

from .measures import Segments, burst, median, repeated, wilson
from .outputs import CLIP, Heard, Output, Run
from .protocols import PROTOCOLS, SEAMLESS

HEAD = (
    "protocol",
    "outputs",
    "prefix repeated",
    "(of another voice)",
    "word error rate",
    "against seamless",
    "own voice",
    "bursts",
    "first audible, ms",
    "first word due",
)
_ORDER = list(PROTOCOLS)
_BREAK = "|"  # no word: nothing runs across it


def summarise(run: Run) -> dict[str, Any]:
    """A row for each protocol."""
    outputs, heard, prefixes = run.outputs(), run.heard(), _prefix_words(run.settings["transcripts"])
    clips = {key[2]: one for key, one in heard.items() if key[0] == CLIP}
    pairs: dict[str, list[tuple[Output, Heard]]] = defaultdict(list)
    for key, output in outputs.items():
        if key in heard:
            pairs[output.protocol].append((output, heard[key]))
    pairs.pop(CLIP, None)
    names = sorted(pairs, key=lambda name: _ORDER.index(name) if name in _ORDER else -1)
    wrong = {name: _Wrong(pairs[name]) for name in names}
    rows = [_row(name, pairs[name], wrong[name], wrong.get(SEAMLESS), clips, prefixes) for name in names]
    return {"settings": run.settings, "rows": rows, "unheard": len(outputs.keys() - heard.keys())}


def _prefix_words(transcripts: dict[str, list[str]]) -> dict[str, list[str]]:
    return {voice: [word for text in texts for word in normalise(text)] for voice, texts in transcripts.items()}


class _Wrong:
    """Word errors of a protocol, and words, by request."""

    def __init__(self, pairs: Sequence[tuple[Output, Heard]]) -> None:
        self.errors, self.words = defaultdict[int, int](int), defaultdict[int, int](int)
        for output, one in pairs:
            wanted = normalise(output.text)
            self.errors[output.request] += word_errors(wanted, normalise(one.words))
            self.words[output.request] += len(wanted)

    def rate(self) -> dict[str, float]:
        return _interval(list(self.errors.values()), list(self.words.values()))

    def less(self, other: _Wrong) -> dict[str, float] | None:
        """The rate less another's, request by request. None if that other one lacks some of these."""
        if other is self or not self.words.items() <= other.words.items():
            return None
        return _interval([self.errors[key] - other.errors[key] for key in self.words], list(self.words.values()))


def _interval(errors: list[int], words: list[int]) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), error_rate(errors, words), strict=True))


def _row(
    name: str,
    pairs: Sequence[tuple[Output, Heard]],
    wrong: _Wrong,
    seamless: _Wrong | None,
    clips: dict[str, Heard],
    prefixes: dict[str, list[str]],
) -> dict[str, Any]:
    natural = [Segments(clip.start, clip.rest) for clip in clips.values()]
    repeats, bursts, matches, alarms = [], [], 0, 0
    for output, one in pairs:
        wanted, said, own = normalise(output.text), normalise(one.words), prefixes[output.voice]
        where = {"request": output.request, "voice": output.voice}
        if found := repeated(said, own, wanted):
            repeats.append({**where, "words": " ".join(found)})
        known = [*wanted, _BREAK, *own]
        alarms += sum(bool(repeated(said, prefixes[voice], known)) for voice in prefixes if voice != output.voice)
        if by := burst(Segments(one.start, one.rest), natural):
            bursts.append({**where, "by": by})
        matches += _nearest(one, clips) == output.voice
    audible = [one.audible_ms for _, one in pairs if one.audible_ms is not None]
    return {
        "protocol": name,
        "outputs": len(pairs),
        "prefix_repeat": rate(len(repeats), len(pairs)),
        "other_prefix": rate(alarms, len(pairs) * (len(prefixes) - 1)),  # false alarms: nobody has spoken these
        "word_error_rate": wrong.rate(),
        "against_seamless": wrong.less(seamless) if seamless else None,
        "voice_match": rate(matches, len(pairs)),
        "bursts": rate(len(bursts), len(pairs)),
        "first_audible_ms": dict(zip(("p50", "low", "high"), median(audible), strict=True)) if audible else None,
        "inaudible": len(pairs) - len(audible),
        "first_word_due_ms": 1000 * float(np.median([output.first_word_s for output, _ in pairs])),
        "seconds_mean": float(np.mean([one.seconds for _, one in pairs])),
        "repeated": repeats,
        "burst": bursts,
    }


def _nearest(one: Heard, clips: dict[str, Heard]) -> str:
    """Whose clip the output's speaker is most like."""
    return max(clips, key=lambda voice: float(np.dot(one.speaker, clips[voice].speaker)), default="")


def rate(hits: int, count: int) -> dict[str, Any]:
    low, high = wilson(hits, count)
    return {"hits": hits, "of": count, "low": low, "high": high}


def print_report(report: dict[str, Any]) -> None:
    settings = report["settings"]
    print(", ".join(f"{name} {value}" for name, value in settings.items() if name != "transcripts"))
    print(f"voices: {', '.join(settings['transcripts'])}; 95 % intervals in brackets\n")
    print(f"| {' | '.join(HEAD)} |\n|--{'|--:' * (len(HEAD) - 1)}|")
    for row in report["rows"]:
        print(f"| {' | '.join(_cells(row))} |")
    if report["unheard"]:
        print(f"\n{report['unheard']} outputs have not been heard yet.")


def _cells(row: dict[str, Any]) -> list[str]:
    wrong, more, audible = row["word_error_rate"], row["against_seamless"], row["first_audible_ms"]
    return [
        row["protocol"],
        str(row["outputs"]),
        _share(row["prefix_repeat"]),
        _share(row["other_prefix"]),
        f"{100 * wrong['value']:.1f} % ({100 * wrong['low']:.1f} to {100 * wrong['high']:.1f})",
        f"{100 * more['value']:+.1f} ({100 * more['low']:+.1f} to {100 * more['high']:+.1f})" if more else "-",
        _share(row["voice_match"]),
        _share(row["bursts"]),
        f"{audible['p50']:.0f} ({audible['low']:.0f} to {audible['high']:.0f})" if audible else "-",
        f"{row['first_word_due_ms']:.0f}",
    ]


def _share(part: dict[str, Any]) -> str:
    if not part["of"]:
        return "-"
    return f"{part['hits']} of {part['of']} ({100 * part['low']:.1f} to {100 * part['high']:.1f} %)"
