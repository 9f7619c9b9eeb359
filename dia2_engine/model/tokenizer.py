"""The checkpoint's tokenizer: `tokenizer.json`, read by the `tokenizers` library alone.

`transformers` is asked only where that file does not hold everything: importing it costs seconds.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

from ..errors import ConfigError
from ..text.parser import Encode
from ..text.state_machine import TextTokens
from .checkpoint import CheckpointFiles

_USUAL_BOS = 1


def load_tokenizer(files: CheckpointFiles) -> tuple[Encode, TextTokens]:
    """The encoder of words, and the ids that have a meaning of their own. The encoder may be called from any thread.

    Raises ConfigError if the tokenizer cannot be read or has ids outside the model's text vocabulary.
    """
    config, folder = files.config, files.tokenizer
    try:
        tokenizer, bos = _read(folder)
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(f"{folder}: no usable tokenizer: {error}") from None
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    largest = max(vocab.values())
    if largest >= config.text_vocab:
        raise ConfigError(f"{folder}: id {largest} is outside the text vocabulary 0..{config.text_vocab - 1}")
    tokens = TextTokens(
        bos=_USUAL_BOS if bos is None else bos,
        new_word=config.text_new_word,
        pad=config.text_pad,
        zero=config.text_zero,
        spk1=vocab.get("[S1]", config.text_new_word),
        spk2=vocab.get("[S2]", config.text_new_word),
    )

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return encode, tokens


def _read(folder: Path) -> tuple[Tokenizer, int | None]:
    file, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if file.is_file():
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if tokenizer.token_to_id("[S1]") is not None:
            token = json.loads(settings.read_text("utf-8")).get("bos_token") if settings.is_file() else None
            content = token.get("content") if isinstance(token, dict) else token
            return tokenizer, None if content is None else tokenizer.token_to_id(content)
    # An older tokenizer, or one whose speaker tags are in its settings only.
    from transformers import AutoTokenizer

    converted = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    return converted.backend_tokenizer, converted.bos_token_id
