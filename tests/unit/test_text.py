"""The script parser where it differs from the reference or is easy to get wrong, and the machine's promises."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dia2_engine.model.checkpoint import find_checkpoint
from dia2_engine.model.tokenizer import load_tokenizer
from dia2_engine.text.parser import Encode, parse_script
from dia2_engine.text.state_machine import Entry, TextMachine, TextTokens

CHECKPOINT = Path(__file__).parents[1] / "data" / "parity" / "small" / "checkpoint"
FRAME_RATE = 12.5


@pytest.fixture(scope="module")
def tokenizer() -> tuple[Encode, TextTokens]:
    return load_tokenizer(find_checkpoint(str(CHECKPOINT)))


@pytest.fixture(scope="module")
def encode(tokenizer: tuple[Encode, TextTokens]) -> Encode:
    return tokenizer[0]


@pytest.fixture(scope="module")
def tokens(tokenizer: tuple[Encode, TextTokens]) -> TextTokens:
    return tokenizer[1]


def parse(tokenizer: tuple[Encode, TextTokens], *lines: str) -> list[Entry]:
    return parse_script(lines, *tokenizer, FRAME_RATE)


def texts(entries: list[Entry]) -> list[str]:
    return [entry.text for entry in entries]


def speakers(entries: list[Entry], tokens: TextTokens) -> list[int | None]:
    """Which speaker's tag each word carries."""
    names = {tokens.spk1: 1, tokens.spk2: 2}
    return [names.get(entry.tokens[0]) for entry in entries]


# ---- breaks


def test_a_break_is_a_pause_in_frames_and_no_word(tokenizer: tuple[Encode, TextTokens]) -> None:
    one, pause, two = parse(tokenizer, 'one <break time="1.0s"/> two')
    assert (one.text, two.text) == ("one", "two")
    assert pause == Entry((), "", 12)


@pytest.mark.parametrize("written", ['<break time="2s"/>', '<break  time="2.s" />', '<break time="2.00s">'])
def test_ways_to_write_a_break(tokenizer: tuple[Encode, TextTokens], written: str) -> None:
    assert [entry.padding for entry in parse(tokenizer, f"a{written}b") if not entry.tokens] == [25]


@pytest.mark.parametrize(
    "written",
    ["<break/>", "<break time='1s'/>", '<break time="s"/>', '<break time="1e9s"/>', '<break time="-1s"/>',
     '<break time="1ms"/>', '<break time="1.2.3s"/>', '<break time="'],
)  # fmt: skip
def test_a_malformed_break_is_spoken_as_written(tokenizer: tuple[Encode, TextTokens], written: str) -> None:
    entries = parse(tokenizer, f"one {written} two")
    assert texts(entries) == ["one", *written.split(), "two"]
    assert all(entry.tokens for entry in entries)


@pytest.mark.parametrize("seconds", ["9" * 30, "1" + "0" * 400, "9" * 5000])
def test_a_huge_break_is_a_finite_pause_that_no_context_holds(
    tokenizer: tuple[Encode, TextTokens], seconds: str
) -> None:
    pauses = [entry.padding for entry in parse(tokenizer, f'a <break time="{seconds}s"/> b') if not entry.tokens]
    assert pauses == [12_500_000]


def test_a_break_shorter_than_half_a_frame_is_none(tokenizer: tuple[Encode, TextTokens]) -> None:
    assert texts(parse(tokenizer, 'a <break time="0.03s"/> <break time="0s"/> b')) == ["a", "b"]


# ---- control ids


def test_control_pieces_are_dropped_and_words_of_nothing_else_with_them(
    tokenizer: tuple[Encode, TextTokens], encode: Encode, tokens: TextTokens
) -> None:
    assert encode("<pad>") == [tokens.pad], "the tokenizer turns the text into the control id"
    entries = parse(tokenizer, "one <pad> <new_word> <s> <zero> two a<pad>b")
    assert texts(entries) == ["one", "two", "a<pad>b"]
    control = {tokens.bos, tokens.new_word, tokens.pad, tokens.zero}
    assert not control & {piece for entry in entries for piece in entry.tokens}
    assert entries[-1].padding == len(entries[-1].tokens) > 0


@settings(deadline=None, max_examples=300)
@given(script=st.text(max_size=80) | st.lists(st.sampled_from(
    ["<pad>", "<s>", "<unk>", "[S1]", "[S2]", "[S1][S2]", "word", "\x00", "\u200b", "\U0001f600", "\ud7ff", "\n", ":",
     '<break time="0.2s"/>']), max_size=12).map(" ".join))  # fmt: skip
def test_any_text_gives_legal_entries(tokenizer: tuple[Encode, TextTokens], script: str) -> None:
    tokens = tokenizer[1]
    for entry in parse(tokenizer, script):
        assert entry.padding > 0
        assert all(0 <= piece < 416 for piece in entry.tokens)
        assert not {tokens.bos, tokens.new_word, tokens.pad, tokens.zero} & set(entry.tokens)
        assert bool(entry.tokens) == bool(entry.text)


@pytest.mark.parametrize("script", ["", "   \n\t ", "[S1]", "[S1] [S2] [S1]", "<pad>", ":", '<break time="0s"/>'])
def test_a_script_without_words_has_no_entries(tokenizer: tuple[Encode, TextTokens], script: str) -> None:
    assert parse(tokenizer, script) == []


# ---- speakers


@pytest.mark.parametrize("script", ["hello there", "[S1] hello there", "[S2] [S1] hello there"])
def test_the_first_word_says_who_speaks(tokenizer: tuple[Encode, TextTokens], tokens: TextTokens, script: str) -> None:
    entries = parse(tokenizer, script)
    assert speakers(entries, tokens) == [1, None]
    assert [piece for piece in entries[0].tokens if piece in (tokens.spk1, tokens.spk2)] == [tokens.spk1]


def test_turns_are_tagged_at_their_first_word(tokenizer: tuple[Encode, TextTokens], tokens: TextTokens) -> None:
    entries = parse(tokenizer, "[S1] one two [S2] three four [S1] five")
    assert texts(entries) == ["one", "two", "three", "four", "five"]
    assert speakers(entries, tokens) == [1, None, 2, None, 1]


def test_a_tag_survives_a_break_and_words_that_are_dropped(
    tokenizer: tuple[Encode, TextTokens], tokens: TextTokens
) -> None:
    entries = parse(tokenizer, '[S1] one [S2] <break time="1s"/> <pad> two')
    assert speakers([entry for entry in entries if entry.tokens], tokens) == [1, 2]


def test_lines_alternate_from_speaker_1(tokenizer: tuple[Encode, TextTokens], tokens: TextTokens) -> None:
    entries = parse(tokenizer, "one", "two", "[S1] three")
    assert speakers(entries, tokens) == [1, 2, 1]


def test_unknown_tags_are_words(tokenizer: tuple[Encode, TextTokens]) -> None:
    assert texts(parse(tokenizer, "[S3] (laughs) [s1] <b>")) == ["[S3]", "(laughs)", "[s1]", "<b>"]


# ---- words


def test_curly_apostrophes_are_straightened_and_colons_part_words(
    tokenizer: tuple[Encode, TextTokens], encode: Encode
) -> None:
    entries = parse(tokenizer, "first it\u2019s 10:30 now:")
    assert texts(entries) == ["first", "it's", "10", "30", "now"]
    assert list(entries[1].tokens) == encode("it's")
    assert [entry.padding for entry in entries] == [len(entry.tokens) for entry in entries]


# ---- the machine

TOKENS = TextTokens(bos=1, new_word=2, pad=3, zero=7, spk1=90, spk2=91)
ENTRIES = st.lists(
    st.builds(lambda n, base: Entry(tuple(range(base, base + n)), "w" if n else "", max(n, 2)), st.integers(0, 4),
              st.integers(10, 40)),
    max_size=8,
)  # fmt: skip


def machine(entries: list[Entry], lookahead: int) -> TextMachine:
    return TextMachine(TOKENS, entries, lookahead_words=lookahead, max_padding=6, initial_padding=2)


@settings(deadline=None, max_examples=200)
@given(ENTRIES, st.integers(0, 3), st.integers(0, 2**32), st.floats(0, 1))
def test_every_piece_is_streamed_once_in_order_whatever_the_model_proposes(
    entries: list[Entry], lookahead: int, seed: int, eagerness: float
) -> None:
    text, rng = machine(entries, lookahead), random.Random(seed)
    main: list[int] = []
    started: list[Entry] = []
    step = 0
    while text.end_step is None or text.pending:
        assert step < 20 * (len(entries) + 2), "the machine waits for ever"
        made = text.step(step, rng.random() < eagerness)
        main.append(made.main)
        started += [made.started] if made.started else []
        step += 1
    assert started == entries
    pieces = [piece for piece in main if piece not in (TOKENS.pad, TOKENS.new_word)]
    assert pieces == [piece for entry in entries for piece in entry.tokens]


@settings(deadline=None, max_examples=100)
@given(ENTRIES, st.integers(0, 3), st.integers(0, 30))
def test_a_copy_goes_its_own_way(entries: list[Entry], lookahead: int, steps: int) -> None:
    """A voice's machine is shared by its requests: what one does must not be seen by another."""
    text = machine(entries, lookahead)
    for step in range(steps):
        text.step(step, True)
    twin, other = text.copy(), text.copy()
    other.entries.append(Entry((55,), "more", 1))
    for step in range(steps, steps + 40):
        other.step(step, True)
    expected = [text.step(step, True) for step in range(steps, steps + 40)]
    assert [twin.step(step, True) for step in range(steps, steps + 40)] == expected


def test_a_forced_word_begins_at_once_but_never_cuts_one_short() -> None:
    text = machine([Entry((10, 11, 12), "long", 9), Entry((20,), "next", 1)], 0)
    assert text.step(0, True).started is None, "the initial padding holds an unforced proposal back"
    assert text.step(1, True, forced=True).started is not None
    assert [text.step(step, True, forced=True).main for step in range(2, 5)] == [10, 11, 12]
    made = text.step(5, True, forced=True)
    assert made.started is not None
    assert made.started.text == "next"
