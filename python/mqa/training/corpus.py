"""Tokens to train on and to validate with."""

from dataclasses import dataclass

import torch
from torch import Tensor

BYTE_VOCABULARY = 256
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Corpus:
    """Tokens int64 `[N]` to train on and, from the end of the text, to validate with."""

    training: Tensor
    validation: Tensor

    @classmethod
    def split(cls, tokens: Tensor, context: int) -> "Corpus":
        """Splits the tokens of a text.

        Raises:
            ValueError: a part is too short for a sequence of `context` tokens and the next one.
        """
        count = len(tokens)
        split = count - int(count * VALIDATION_SHARE)
        if min(split, count - split) <= context:
            raise ValueError(
                f"expected a text of which {VALIDATION_SHARE:.0%} (for validation) are more than "
                f"{context} tokens (the context), got {count} tokens in all"
            )
        return cls(tokens[:split], tokens[split:])


def byte_tokens(text: bytes) -> Tensor:
    """The bytes of a text as tokens, of a vocabulary of `BYTE_VOCABULARY`."""
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


def random_batch(tokens: Tensor, batch: int, context: int, generator: torch.Generator) -> Tensor:
    """`[batch, context + 1]`: pieces from anywhere in `tokens`."""
    starts = torch.randint(len(tokens) - context, (batch, 1), generator=generator)
    return tokens[starts + torch.arange(context + 1)]
