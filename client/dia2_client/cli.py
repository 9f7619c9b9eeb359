"""`dia2-say`: speak a text through a stream-dia2 server."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from .client import Client
from .dictation import Dictation, UnreadableText
from .errors import ConnectionFailed, Dia2ClientError, InvalidArgument, Timeout, Unavailable
from .plot import PLOT_SUFFIXES, draw
from .sinks import RAW_SUFFIXES, PlayerSink, RawSink, Sink, WavSink
from .stats import StreamStats
from .streams import Session, Stream
from .types import Chunk, SessionOptions, join

OK, FAILED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

EPILOG = """\
examples:
  dia2-say "[S1] Hello there. [S2] Hi, who is this?" -o hello.wav
  dia2-say "Good morning." --voice NAME --seed 7 -o morning.wav    same seed, same audio
  dia2-say --file script.txt --play                                listen while it is made
  llm | dia2-say - -o out.wav                                      speak it while it is being written
  fortune | dia2-say - -o out.wav --waveform out.png               waveform with word onsets
  dia2-say "Hello." --raw - | ffplay -f s16le -ar 24000 -          raw samples into a pipe

Standard input is spoken as it arrives if the server has the model dia2_session and
--max-seconds is not given, which needs the whole text. Otherwise all of it is read first.

The WAV file is valid at every moment; Ctrl-C stops the server's work and keeps what has arrived.

exit status:
  0  spoken    1  server error, or output not writable    2  wrong usage, or refused by the server as invalid
  3  server full, unreachable or silent                 130  interrupted with Ctrl-C
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    check(parser, args)
    try:
        return list_voices(args) if args.list_voices else speak(args)
    except UnreadableText as error:
        return complain(f"cannot read the text: {error}", USAGE)
    except (InvalidArgument, Unavailable, ConnectionFailed, Timeout) as error:
        return complain(str(error), USAGE if isinstance(error, InvalidArgument) else UNREACHABLE)
    except Dia2ClientError as error:
        return complain(str(error), FAILED)
    except BrokenPipeError:
        # The reader of our output has left; give Python's own flush at exit a place to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        return complain(str(error), FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dia2-say",
        description="Speak a text through a stream-dia2 server, and write or play the audio as it arrives.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text = parser.add_argument_group("what to say (one of)").add_mutually_exclusive_group(required=True)
    text.add_argument("text", nargs="?", metavar="TEXT", help="the script; - reads standard input, see below")
    text.add_argument("--file", type=Path, metavar="PATH", help="read the script from a UTF-8 file")
    text.add_argument("--list-voices", action="store_true", help="say nothing; print the server's voices")

    out = parser.add_argument_group("where to put it (at least one)")
    out.add_argument("-o", "--output", type=Path, metavar="PATH", help="OUT.wav (16 bit), OUT.raw or OUT.pcm")
    out.add_argument("--raw", metavar="PATH", help="headerless 16-bit PCM; - writes to standard output")
    out.add_argument("--play", action="store_true", help="play it (needs sounddevice)")
    out.add_argument("--waveform", type=Path, metavar="PNG", help="draw it (needs matplotlib)")

    how = parser.add_argument_group("how to say it (the server's defaults where left out)")
    how.add_argument("--voice", metavar="NAME", help="one of the server's voices")
    how.add_argument("--seed", type=int, metavar="N", help="makes the audio repeatable")
    how.add_argument("--temperature", type=float, metavar="X", help="how freely to sample")
    how.add_argument("--top-k", type=int, metavar="N", help="sample among the N likeliest tokens")
    how.add_argument("--cfg-scale", type=float, metavar="X", help="how closely to follow script and voice")
    how.add_argument("--max-seconds", type=float, metavar="S", help="end the audio after S seconds")

    server = parser.add_argument_group("server")
    server.add_argument(
        "--url",
        type=host_and_port,
        default="localhost:8001",
        metavar="HOST:PORT",
        help="gRPC endpoint (default: %(default)s)",
    )
    server.add_argument(
        "--timeout",
        type=positive,
        default=30.0,
        metavar="S",
        help="give up after S seconds without audio (default: %(default)g)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    return parser


def positive(value: str) -> float:
    """Seconds, for argparse, which names the option."""
    number = float(value)
    if not 0 < number <= threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"{value} is not greater than 0 and finite")
    return number


def host_and_port(value: str) -> str:
    """Without a port gRPC would take 443, and with a scheme it would look for a host of that name."""
    host, _, port = value.rpartition(":")
    if not host or "/" in value or not port.isdecimal():
        raise argparse.ArgumentTypeError(f"{value!r} is not HOST:PORT, such as localhost:8001")
    return value


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What argparse cannot say; ends the program with status 2 before anything is sent."""
    if args.list_voices:
        return
    if not (args.output or args.raw or args.play or args.waveform):
        parser.error("nowhere to put the audio: add -o OUT.wav, --raw -, --play or --waveform OUT.png")
    if args.output and args.output.suffix.lower() not in (".wav", *RAW_SUFFIXES):
        parser.error(f"{args.output}: the suffix must be .wav, .raw or .pcm")
    if args.waveform and args.waveform.suffix.lower() not in PLOT_SUFFIXES:
        parser.error(f"{args.waveform}: the suffix must be .png, .svg or .pdf")
    for wanted, module in ((args.play, "sounddevice"), (args.waveform, "matplotlib")):
        if not wanted:
            continue
        try:
            importlib.import_module(module)
        except ImportError:
            parser.error(f"{module} is not installed; try: {sys.executable} -m pip install {module}")
        except OSError as error:
            parser.error(f"{module}: {error}")  # sounddevice without the PortAudio library


def list_voices(args: argparse.Namespace) -> int:
    """Prints a voice a line, the default one marked. Raises Dia2ClientError."""
    with Client(args.url, connect_timeout_s=min(5.0, args.timeout), timeout_s=args.timeout) as client:
        for voice in client.voices():
            print(f"{voice.name} (default)" if voice.default else voice.name)
    return OK


def read_text(args: argparse.Namespace) -> str:
    """The whole script, from wherever it was asked for. Raises UnreadableText."""
    try:
        if args.file:
            return str(args.file.read_text(encoding="utf-8-sig"))
        if args.text == "-":
            return sys.stdin.buffer.read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableText(error) from None
    return str(args.text)


def begin(client: Client, args: argparse.Namespace) -> tuple[Stream | Session, Dictation | None]:
    """The audio to be, and what feeds it where that is still going on. Raises UnreadableText and Dia2ClientError."""
    options = SessionOptions(
        voice=args.voice,
        seed=args.seed,
        temperature=args.temperature,
        top_k=args.top_k,
        cfg_scale=args.cfg_scale,
    )
    if args.text == "-" and args.max_seconds is None:
        with suppress(Unavailable):  # a server without sessions
            session = client.session(**options)
            return session, Dictation(session, sys.stdin.fileno())
    words = args.waveform is not None
    return client.stream(read_text(args), **options, max_seconds=args.max_seconds, words=words), None


def speak(args: argparse.Namespace) -> int:
    """Streams into the sinks. Raises UnreadableText, and Dia2ClientError and OSError after the sinks are closed."""
    with Client(args.url, connect_timeout_s=min(5.0, args.timeout), timeout_s=args.timeout) as client:
        stream, dictation = begin(client, args)
        stats = StreamStats(stream.sample_rate)
        chunks: list[Chunk] = []
        progress = Progress(shown=sys.stderr.isatty() and not args.quiet)
        try:
            with progress:
                receive(audio(stream, dictation), stream.sample_rate, args, stats, chunks, progress)
        except KeyboardInterrupt:
            stream.cancel()
        if args.waveform and stats.chunks:
            draw(join(chunks, stream.sample_rate, stream.finish_reason), args.waveform)
        if not args.quiet:
            print(f"dia2-say: {stats.summary()}{ending(stream)}", file=sys.stderr)
        return INTERRUPTED if stream.finish_reason == "cancelled" else OK


def audio(stream: Stream | Session, dictation: Dictation | None) -> Iterator[Chunk]:
    """The chunks, and then the error if the text is why there are no more."""
    yield from stream
    if dictation:
        dictation.check()


def receive(
    stream: Iterator[Chunk],
    sample_rate: int,
    args: argparse.Namespace,
    stats: StreamStats,
    chunks: list[Chunk],
    progress: Progress,
) -> None:
    """Moves the audio. The sinks open with the first chunk: a refused request leaves existing files alone."""
    chunk = next(stream, None)
    with ExitStack() as stack:
        sinks = open_sinks(args, sample_rate, stack)
        while chunk is not None:
            stats.add(chunk)
            progress.show(stats.audio_s)
            if args.waveform:
                chunks.append(chunk)
            for sink in sinks:
                sink.write(chunk.audio)
            chunk = next(stream, None)


def open_sinks(args: argparse.Namespace, sample_rate: int, stack: ExitStack) -> list[Sink]:
    sinks: list[Sink] = []
    if args.output:
        raw = args.output.suffix.lower() in RAW_SUFFIXES
        sink: Sink = RawSink(str(args.output)) if raw else WavSink(args.output, sample_rate)
        sinks.append(stack.enter_context(sink))
    if args.raw:
        sinks.append(stack.enter_context(RawSink(args.raw)))
    if args.play:
        sinks.append(stack.enter_context(PlayerSink(sample_rate)))
    return sinks


class Progress:
    """A line on the terminal that follows the stream and is gone afterwards."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown

    def show(self, audio_s: float) -> None:
        if self._shown:
            print(f"\r{audio_s:6.1f} s of audio", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def ending(stream: Stream | Session) -> str:
    if stream.finish_reason == "cancelled":
        return "; interrupted"
    if stream.finish_reason == "length":
        return "; ended by the length limit"
    return ""


def complain(message: str, status: int) -> int:
    print(f"dia2-say: {message}", file=sys.stderr)
    return status
