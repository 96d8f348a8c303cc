"""Trains a decoder, step by step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mqa.decoder import Decoder
from mqa.training.schedule import Schedule

WEIGHT_DECAY = 0.1
BETAS = (0.9, 0.95)
LARGEST_GRADIENT_NORM = 1.0
VALIDATION_BATCHES = 8

Loss = Callable[[Decoder, Tensor], Tensor]


def next_token_loss(model: Decoder, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of every token of `tokens [B, T + 1]` but the first, in nats."""
    logits = model.sequence_logits(tokens[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def validation_loss(
    model: Decoder, tokens: Tensor, schedule: Schedule, batches: int = VALIDATION_BATCHES
) -> float:
    """The mean next-token loss of pieces of a text that are the same at every call."""
    draws = torch.Generator().manual_seed(schedule.seed)
    losses = []
    for _ in range(batches):
        pieces = schedule.draw(tokens, draws)
        with schedule.autocast(pieces.device):
            losses.append(next_token_loss(model, pieces))
    return torch.stack(losses).mean().item()


class Trainer:
    """AdamW on random pieces of a text, with gradients clipped to a norm of 1.

    A step depends on the weights, the optimizer's state and the step's number alone: training
    that goes on from `state_dict` has the bits of training without a break, with as many threads.

    Attributes:
        model: the decoder, whose float32 weights are trained in place.
        schedule: how long and how fast.
        step: the number of steps that are done.
    """

    def __init__(
        self, model: Decoder, tokens: Tensor, schedule: Schedule, loss: Loss = next_token_loss
    ) -> None:
        self.model = model.requires_grad_(True)
        self.schedule = schedule
        self.step = 0
        self._tokens = tokens
        self._loss = loss
        weights = list(model.parameters())
        groups = [
            {"params": [w for w in weights if w.dim() > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [w for w in weights if w.dim() <= 1], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, betas=BETAS, fused=True)

    def advance(self) -> float:
        """Does a step; the loss of its pieces before it.

        Raises:
            FloatingPointError: the loss is not finite; the weights are those before the step.
        """
        schedule = self.schedule
        draws = schedule.draws(self.step)
        total = 0.0
        self._optimizer.zero_grad()
        for _ in range(schedule.accumulation):
            tokens = schedule.draw(self._tokens, draws)
            with schedule.autocast(tokens.device):
                loss = self._loss(self.model, tokens) / schedule.accumulation
            loss.backward()
            total += loss.item()
        if not torch.isfinite(torch.tensor(total)):
            raise FloatingPointError(f"the loss of step {self.step + 1} is {total}")
        nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_GRADIENT_NORM)
        for group in self._optimizer.param_groups:
            group["lr"] = schedule.rate(self.step)
        self._optimizer.step()
        self.step += 1
        return total

    def validate(self, tokens: Tensor, batches: int = VALIDATION_BATCHES) -> float:
        """See `validation_loss`."""
        return validation_loss(self.model, tokens, self.schedule, batches)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, but for text, schedule and loss."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
