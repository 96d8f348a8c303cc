"""How long to train, and how fast."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mqa.training.corpus import random_batch

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        steps: of the optimizer.
        batch: sequences of a forward pass.
        context: tokens of a sequence.
        learning_rate: at its peak.
        accumulation: forward passes whose gradients make up a step.
        warm_up: part of the steps in which the learning rate rises; then it falls as a cosine.
        dtype: of matrix products and attention; "bfloat16" is by autocast, so that weights and
            gradients stay float32.
        seed: decides which pieces of the text are drawn.
        first_token: replaces the first of every sequence; None replaces none. Models that began
            every text of their training with a token are at a loss without it.

    Raises:
        ValueError: a number is not positive, or the dtype is another one.
    """

    steps: int
    batch: int
    context: int
    learning_rate: float
    accumulation: int = 1
    warm_up: float = 0.1
    dtype: str = "float32"
    seed: int = 0
    first_token: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "context", "learning_rate", "accumulation"):
            if not (math.isfinite(value := getattr(self, name)) and value > 0):
                raise ValueError(f"expected {name} > 0, got {value}")
        if not 0 <= self.warm_up < 1:
            raise ValueError(f"expected warm_up in [0, 1), got {self.warm_up}")
        if self.dtype not in DTYPES:
            raise ValueError(f"expected dtype to be one of {DTYPES}, got {self.dtype!r}")

    @property
    def step_tokens(self) -> int:
        """Tokens that a step learns from."""
        return self.batch * self.context * self.accumulation

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ...: warm-up, then a cosine towards zero."""
        warm_up = math.ceil(self.warm_up * self.steps)
        progress = (step + 1 - warm_up) / (self.steps + 1 - warm_up)
        share = (step + 1) / warm_up if progress < 0 else (1 + math.cos(math.pi * progress)) / 2
        return self.learning_rate * share

    def draw(self, tokens: Tensor, generator: torch.Generator) -> Tensor:
        """`[batch, context + 1]`: pieces from anywhere in a text."""
        pieces = random_batch(tokens, self.batch, self.context, generator)
        if self.first_token is not None:
            pieces[:, 0] = self.first_token
        return pieces

    def autocast(self, device: torch.device) -> torch.autocast:
        """The dtype of the computation, as a context."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")

    def draws(self, step: int) -> torch.Generator:
        """What draws the pieces of a step: the same after a restart as without one."""
        return torch.Generator().manual_seed(self.seed * self.steps + step)
