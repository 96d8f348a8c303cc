"""Texts as tokens."""

from pathlib import Path

import torch
from torch import Tensor

from mqa.tokenizer import Tokenizer


def read_tokens(path: Path, tokenizer: Tokenizer, vocab_size: int) -> Tensor:
    """The tokens int64 `[N]` of a text file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no UTF-8 text, or has a token that the model does not know.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text in {path}, got {error}") from error
    tokens = torch.tensor(tokenizer.encode(text), dtype=torch.int64)
    if len(tokens) and (largest := int(tokens.max())) >= vocab_size:
        raise ValueError(
            f"expected tokens below {vocab_size}, the vocabulary of the model, from the tokenizer "
            f"of {tokenizer.source}, got {largest}"
        )
    return tokens


def beginning(tokenizer: Tokenizer) -> int | None:
    """The token that the tokenizer puts before every text, if it does."""
    first = tokenizer.hugging_face.bos_token_id
    return first if first is not None and tokenizer.encode("")[:1] == [first] else None
