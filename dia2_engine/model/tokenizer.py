"""The checkpoint's tokenizer: `tokenizer.json`, read by the `tokenizers` library alone.

`transformers` is asked only to convert an older tokenizer that has no such file: importing it costs seconds.
"""

from __future__ import annotations

import json
from typing import Any

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
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            bos = _bos(json.loads((folder / "tokenizer_config.json").read_text("utf-8")), tokenizer)
        else:
            from transformers import AutoTokenizer

            converted = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            tokenizer, bos = converted.backend_tokenizer, converted.bos_token_id
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


def _bos(settings: dict[str, Any], tokenizer: Tokenizer) -> int | None:
    token = settings.get("bos_token")
    content = token.get("content") if isinstance(token, dict) else token
    return None if content is None else tokenizer.token_to_id(content)
