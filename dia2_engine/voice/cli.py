"""`dia2-voice`: makes voices from recordings, and says what is wrong with the ones that are there."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..config import EngineConfig
from ..errors import ConfigError
from ..model.checkpoint import find_checkpoint
from .recording import Findings
from .report import Report, check_clips, lay_out, print_report
from .timing import read_words, transcribe
from .voice import NO_VOICE, VoiceSource, list_voices, load_voice_folder, read_clip, voice_source
from .workshop import Workshop

_DESCRIPTION = """\
A voice is one or two short clips (a few seconds each) of clear, dry speech, and the times at which their words are
spoken. The server continues from them, so what they sound like is what you get."""

_PREPARE_EXAMPLES = """\
examples:
  a clip and its words ([{"text": "Hello,", "start": 0.12, "end": 0.40}, ...], or Whisper's JSON with word times):
    dia2-voice prepare anna.wav --words anna.json --checkpoint nari-labs/Dia2-2B
  a clip, its words heard by Whisper (needs: pip install faster-whisper):
    dia2-voice prepare anna.wav --whisper small.en --checkpoint nari-labs/Dia2-2B
  a dialogue, one clip for each speaker:
    dia2-voice prepare anna.wav ben.wav --words anna.json ben.json --name anna-and-ben --checkpoint DIR
  a folder you can edit (voice.json and the clip) first, the prepared file when its words are right:
    dia2-voice prepare anna.wav --whisper small.en --folder --checkpoint DIR
    dia2-voice prepare voices/anna --checkpoint DIR

A server uses NAME.safetensors in place of the folder NAME, if both are there. A prepared voice belongs to the codec
that made it, and keeps the --cooldown-frames and --fade-ms it was made with."""

_CHECK_EXAMPLES = """\
examples:
  dia2-voice check voices/ --checkpoint nari-labs/Dia2-2B      every voice of a folder
  dia2-voice check voices/anna voices/ben.safetensors --checkpoint DIR

The exit status is 1 if any voice cannot be served."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status (0 well, 1 an error in a voice or a file; 2 is argparse's)."""
    args = _parser().parse_args(argv)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        settings = EngineConfig(
            args.checkpoint, mimi=args.mimi, cooldown_frames=args.cooldown_frames, fade_ms=args.fade_ms
        )
        workshop = Workshop(find_checkpoint(args.checkpoint, args.mimi or None, weights=False), settings)
        return _prepare(args, workshop) if args.command == "prepare" else _check(args, workshop)
    except (ConfigError, OSError) as error:
        print(f"dia2-voice: error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dia2-voice", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    group = shared.add_argument_group("the model the voice is for")
    group.add_argument(
        "--checkpoint", required=True, help="folder, or Hugging Face repository; its weights are not needed"
    )
    group.add_argument("--mimi", default="", help="codec folder or repository (default: the checkpoint's own)")
    group.add_argument(
        "--cooldown-frames",
        type=int,
        default=EngineConfig.cooldown_frames,
        metavar="N",
        help="frames of silence between the voice and the request (default: %(default)s)",
    )
    group.add_argument(
        "--fade-ms",
        type=float,
        default=EngineConfig.fade_ms,
        metavar="MS",
        help="fade at the end of each clip (default: %(default)s)",
    )

    prepare = commands.add_parser(
        "prepare",
        parents=[shared],
        help="make a voice from one or two clips, or from a voice folder",
        description=_DESCRIPTION,
        epilog=_PREPARE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    prepare.add_argument(
        "source", nargs="+", type=Path, help="one or two WAV or FLAC clips, one per speaker; or one voice folder"
    )
    prepare.add_argument("--words", nargs="+", type=Path, metavar="JSON", help="timed words, one file per clip")
    prepare.add_argument("--whisper", metavar="MODEL", help="find the words with this faster-whisper model instead")
    prepare.add_argument("--name", help="what requests call the voice (default: the name of the first clip or folder)")
    prepare.add_argument(
        "--solo", action="store_true", help="the one clip is speaker 1 only (default: it serves as speaker 2 too)"
    )
    prepare.add_argument("--folder", action="store_true", help="write a voice folder, not a prepared file")
    prepare.add_argument("--out", type=Path, default=Path("voices"), help="folder of voices (default: voices/)")
    prepare.add_argument("--force", action="store_true", help="replace a voice of that name")

    check = commands.add_parser(
        "check",
        parents=[shared],
        help="report on voices that are there",
        description="Report how voices lie on the model's frames and what is wrong with them.",
        epilog=_CHECK_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("path", nargs="+", type=Path, help="voice folders, prepared voices, or a folder of voices")
    return parser


# ---- prepare


def _prepare(args: argparse.Namespace, workshop: Workshop) -> int:
    sources: list[Path] = args.source
    first = sources[0].resolve()
    name: str = args.name or (first.name if first.is_dir() else first.stem)
    if name == NO_VOICE or name.startswith(".") or Path(name).name != name:
        raise ConfigError(f"--name is {name!r}; it must be a plain file name, and {NO_VOICE!r} is reserved")
    out: Path = args.out / (name if args.folder else f"{name}.safetensors")
    if out.exists() and not args.force:
        raise ConfigError(f"{out} exists; --force replaces it")
    if sources[0].is_dir():
        source = _from_folder(args, workshop)
        clips = [sources[0] / clip.source for clip in source.clips]
    else:
        source = _from_clips(args, workshop, name)
        clips = sources
    voice = VoiceSource(name, source.clips)
    found = check_clips(clips, voice)
    if found.errors:
        return print_report(Report(name, found))
    prepared = workshop.prepare(voice)
    print_report(lay_out(prepared, workshop, found))
    args.out.mkdir(parents=True, exist_ok=True)
    if args.folder:
        _write_folder(out, sources, source, solo=args.solo)
    else:
        part = out.with_name(f".{out.name}.part")
        try:
            prepared.save(part)
            workshop.load(part)  # as a server will
            os.replace(part, out)
        finally:
            part.unlink(missing_ok=True)
    print(f"wrote {out}")
    return 0


def _from_folder(args: argparse.Namespace, workshop: Workshop) -> VoiceSource:
    if len(args.source) != 1:
        raise ConfigError("a voice folder brings both of its clips; give one folder, or one or two clips")
    given = [f"--{name}" for name in ("words", "whisper", "solo", "folder") if getattr(args, name)]
    if given:
        raise ConfigError(f"{', '.join(given)} cannot be used with a voice folder; edit its voice.json instead")
    if not (args.source[0] / "voice.json").is_file():
        raise ConfigError(f"{args.source[0].resolve()}: is no voice folder; it holds no voice.json")
    return load_voice_folder(args.source[0], workshop.sample_rate)


def _from_clips(args: argparse.Namespace, workshop: Workshop, name: str) -> VoiceSource:
    sources: list[Path] = args.source
    if len(sources) > 2:
        raise ConfigError(f"a voice has one or two clips, not {len(sources)}")
    if args.solo and len(sources) == 2:
        raise ConfigError("--solo is for one clip, and two are given")
    if bool(args.words) == bool(args.whisper):
        raise ConfigError(
            "the words of a clip and their times are needed, from one of two places: "
            "--words FILE.json for each clip, or --whisper MODEL (such as small.en) to find them"
        )
    if args.words and len(args.words) != len(sources):
        raise ConfigError(f"--words needs one file per clip: {len(sources)} clips, {len(args.words)} files")
    missing = [path for path in sources if not path.is_file()]
    if missing:
        raise ConfigError(f"{missing[0]}: there is no such file")
    texts = [read_words(path) for path in args.words or ()] or [transcribe(path, args.whisper) for path in sources]
    clips = [read_clip(path, words, workshop.sample_rate) for path, words in zip(sources, texts, strict=True)]
    return voice_source(name, clips, solo=args.solo)


def _write_folder(out: Path, paths: Sequence[Path], source: VoiceSource, *, solo: bool) -> None:
    """Write voice.json and the clips as they are; whatever was there is replaced."""
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    speakers = []
    for index, path in enumerate(paths):
        name = f"speaker_{index + 1}{path.suffix}"
        shutil.copyfile(path, part / name)
        speakers.append({"clip": name, "words": [asdict(word) for word in source.clips[index].words]})
    manifest = {"description": "", "license": "", "source": ", ".join(path.name for path in paths)}
    second = {"second_speaker": "none" if solo else "same"} if len(paths) == 1 else {}
    text = json.dumps({**manifest, "speakers": speakers, **second}, indent=1, ensure_ascii=False)
    (part / "voice.json").write_text(text + "\n", "utf-8")
    if out.exists():
        shutil.rmtree(out)
    os.replace(part, out)


# ---- check


def _check(args: argparse.Namespace, workshop: Workshop) -> int:
    status = 0
    for path in _voices(args.path):
        try:
            report = _examine(path, workshop)
        except ConfigError as error:
            name = path.stem if path.suffix == ".safetensors" else path.name
            report = Report(name, Findings(errors=[str(error)]))
        status = max(status, print_report(report))
    return status


def _voices(paths: Sequence[Path]) -> list[Path]:
    """Paths as given, with folders of voices in place of themselves."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path}: there is no such file or folder")
        if path.is_dir() and not (path / "voice.json").exists():
            inside = list_voices(path)
            if not inside:
                raise ConfigError(f"{path}: holds no voice.json, no prepared voice and no folder with a voice in it")
            found += inside.values()
        else:
            found.append(path)
    return found


def _examine(path: Path, workshop: Workshop) -> Report:
    if not path.is_dir():
        return lay_out(workshop.load(path), workshop, Findings())
    source = load_voice_folder(path.resolve(), workshop.sample_rate)
    found = check_clips([path / clip.source for clip in source.clips], source)
    if found.errors:
        return Report(source.name, found)
    return lay_out(workshop.prepare(source), workshop, found)


if __name__ == "__main__":
    sys.exit(main())
