"""The choice of the next token: the likeliest one, or a draw."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How to choose a token from its logits.

    Attributes:
        temperature: 0 takes the likeliest token; otherwise logits are divided by it.
        top_k: sample among the `top_k` likeliest tokens only.
        top_p: sample among the fewest likeliest tokens whose probabilities reach `top_p`.

    Raises:
        ValueError: an option is out of its range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"generate: expected a finite temperature >= 0, got {self.temperature}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"generate: expected top_k >= 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"generate: expected top_p in (0, 1], got {self.top_p}")

    def choose(self, logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """The next token of each row of `logits [B, vocab]`, int64 `[B]`."""
        if self.temperature == 0:
            return logits.argmax(-1)
        draws = [
            torch.multinomial(row, 1, generator=generator)
            for row, generator in zip(self.probabilities(logits), generators, strict=True)
        ]
        return torch.cat(draws)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution `[B, vocab]` to draw from: temperature, then top-k, then top-p."""
        vocab_size = logits.size(-1)
        kept, ids = (logits / self.temperature).topk(min(self.top_k or vocab_size, vocab_size))
        weights = kept.softmax(-1)
        if self.top_p is not None:
            # A token is dropped if those before it, which are likelier, already reach top_p.
            weights = weights.masked_fill(weights.cumsum(-1) - weights >= self.top_p, 0)
            weights = weights / weights.sum(-1, keepdim=True)
        return torch.zeros_like(logits).scatter(-1, ids, weights)
