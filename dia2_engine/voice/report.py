"""What `dia2-voice` has to say about a voice: how it lies on the model's frames, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .recording import Findings, check_recording
from .voice import PreparedVoice, VoiceSource
from .workshop import Layout, Workshop

LARGE_SHARE = 0.5  # of the context


@dataclass(frozen=True)
class Report:
    """How a voice lies on the model's columns, as far as it got, and what is wrong with it."""

    name: str
    found: Findings
    voice: PreparedVoice | None = None
    layout: Layout | None = None


def lay_out(voice: PreparedVoice, workshop: Workshop, found: Findings) -> Report:
    """Lay a voice out as a server will. Raises ConfigError if it cannot be served."""
    layout = workshop.lay_out(voice)
    share = layout.plan.frames / workshop.model.max_context_steps
    if share > LARGE_SHARE:
        found.warnings.append(f"it takes {share:.0%} of the model's context; a few seconds of speech do")
    return Report(voice.name, found, voice, layout)


def check_clips(paths: Sequence[Path], source: VoiceSource) -> Findings:
    """Check each recording once, even if it serves as both speakers."""
    whole = Findings()
    distinct = {id(clip): (path, clip) for path, clip in zip(paths, source.clips, strict=False)}
    for path, clip in distinct.values():
        found = check_recording(path, clip.words)
        whole.errors += found.errors
        whole.warnings += found.warnings
    return whole


def print_report(report: Report) -> int:
    """Print a report; returns the exit status it stands for."""
    print(f"{report.name}:")
    if report.voice and report.layout:
        _print_layout(report.voice, report.layout)
    for label, lines in (("error", report.found.errors), ("warning", report.found.warnings)):
        for line in lines:
            print(f"  {label}: {line}")
    if not report.found.errors and not report.found.warnings:
        print("  no complaints")
    return 1 if report.found.errors else 0


def _print_layout(voice: PreparedVoice, layout: Layout) -> None:
    plan, cut = layout.plan, layout.prefix.cut
    words = iter(zip(plan.entries, plan.new_word_steps, strict=True))
    for index, (clip, frames) in enumerate(zip(voice.words, voice.clip_frames, strict=True)):
        print(f"  speaker {index + 1}: {frames} frames")
        for word, (_, step) in zip(clip, words, strict=False):
            print(f"    frame {step:4}   {word.start:6.2f} s   {word.text}")
    print(f"  length: {plan.frames} frames (P)")
    print(f"  cut: frame {cut}; {plan.frames - cut} frames are fed again with each request's words ahead")
    print(f"  left for speech: {layout.left_s:.1f} s of the model's context")
