"""The tokenizer: byte-level BPE over the words of the training texts, with the published special ids.

A word of k pieces keeps the next one waiting for k + 1 frames, so pieces must not be too small; the larger they are,
the fewer words teach how each is pronounced.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from .shape import SPEAKER_TAGS, SPECIAL_TOKENS

FILES = ("tokenizer.json", "tokenizer_config.json")
PIECES = 1024  # with the special ones, without the tags


def train_tokenizer(texts: Iterable[str], pieces: int = PIECES) -> Tokenizer:
    """A word has the same pieces with a tag in front of it as without: the tag takes the space behind it."""
    tokenizer = Tokenizer(models.BPE())
    # Digits stand alone, or most numbers would be pieces that are next to never seen.
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(word, special=True, normalized=False) for word in SPECIAL_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=pieces,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((word for text in texts for word in text.split()), trainer)
    tags = [AddedToken(tag, special=True, normalized=False, rstrip=True) for tag in SPEAKER_TAGS]
    tokenizer.add_special_tokens(tags)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save(str(folder / FILES[0]))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[1],
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "extra_special_tokens": list(SPEAKER_TAGS),
    }
    (folder / FILES[1]).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")
