"""How words are counted, which decides every error rate."""

from __future__ import annotations

import pytest

from training.recogniser import error_rate, normalise, word_errors


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's Twenty-five past, Anna!", ["its", "25", "past", "anna"]),
        ("He paid 30 dollars and seventy cents.", ["he", "paid", "30", "dollars", "and", "70", "cents"]),
        ("at twelve o\u2019clock", ["at", "12", "oclock"]),
        ("two three twenty one", ["2", "3", "21"]),
        ("twenty ten", ["20", "10"]),
        ("Six seven, eight and nine.", ["6", "7", "8", "and", "9"]),
    ],
)
def test_numbers_and_punctuation_do_not_count_as_errors(text: str, words: list[str]) -> None:
    assert normalise(text) == words


@pytest.mark.parametrize(
    ("wanted", "heard", "errors"),
    [("a b c", "a b c", 0), ("a b c", "a c", 1), ("a b c", "a x c d", 2), ("", "a", 1), ("a b", "", 2)],
)
def test_errors_are_the_fewest_edits(wanted: str, heard: str, errors: int) -> None:
    assert word_errors(wanted.split(), heard.split()) == errors


def test_the_interval_holds_the_rate() -> None:
    rate, low, high = error_rate([0, 1, 2, 0, 0, 3] * 5, [5, 6, 7, 8, 9, 10] * 5)
    assert rate == pytest.approx(6 / 45)
    assert low < rate < high
