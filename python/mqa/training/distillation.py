"""Learning from a teacher: to find every next token as likely as it does."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mqa.decoder import Decoder

ROWS = 128  # at a time: of a large vocabulary, what a cache of the processor holds


@dataclass(frozen=True)
class Distillation:
    """A loss for `Trainer`: the divergence from a teacher, mixed with the loss on the text itself.

    Attributes:
        teacher: has the vocabulary of the model that learns.
        temperature: divides the logits of both; above 1, unlikely tokens count more.
        weight: of the divergence; what is missing to 1 is the next-token loss.

    Raises:
        ValueError: temperature or weight is out of range.
    """

    teacher: Decoder
    temperature: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"Distillation: expected temperature > 0, got {self.temperature}")
        if not 0 < self.weight <= 1:
            raise ValueError(f"Distillation: expected weight in (0, 1], got {self.weight}")

    def __call__(self, model: Decoder, tokens: Tensor) -> Tensor:
        """The loss of `tokens [B, T + 1]`, in nats per token.

        Raises:
            ValueError: the vocabularies differ.
        """
        check_teacher(self.teacher, model)
        with torch.no_grad():
            wanted = self.teacher.sequence_logits(tokens[:, :-1]).flatten(0, 1)
        logits = model.sequence_logits(tokens[:, :-1]).flatten(0, 1)
        loss = self.weight * divergence(logits, wanted, self.temperature)
        if self.weight < 1:
            likelihood = nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
            loss = loss + (1 - self.weight) * likelihood
        return loss


def check_teacher(teacher: Decoder, model: Decoder) -> None:
    """Refuses a teacher whose logits say nothing about the model's.

    Raises:
        ValueError: the vocabularies differ.
    """
    wanted, got = model.config.vocab_size, teacher.config.vocab_size
    if wanted != got:
        raise ValueError(
            f"expected a teacher with the vocabulary of the model, {wanted} tokens, got {got}"
        )


def divergence(logits: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean Kullback-Leibler divergence of a teacher's rows from a student's, in nats.

    Times `temperature ** 2`, so that gradients do not shrink with it (Hinton et al., Distilling
    the Knowledge in a Neural Network, arXiv:1503.02531).

    Args:
        logits: the student's, float32 `[N, vocab]`.
        wanted: the teacher's, alike; has no gradient.
        temperature: divides both.
    """
    return _Divergence.apply(logits, wanted, temperature)  # type: ignore[no-untyped-call]


class _Divergence(torch.autograd.Function):
    """Computes the gradient beside the value, so that neither keeps a softmax of all rows."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        gradient = torch.empty_like(logits)
        total = logits.new_zeros([])
        pieces = (rows.split(ROWS) for rows in (logits, wanted, gradient))
        for student, teacher, out in zip(*pieces, strict=True):
            log_student = (student / temperature).log_softmax(-1)
            log_teacher = (teacher / temperature).log_softmax(-1)
            share = log_teacher.exp()
            total += (log_teacher - log_student).mul_(share).sum()
            torch.sub(log_student.exp_(), share, out=out)
        ctx.save_for_backward(gradient.mul_(temperature / len(logits)))
        return total * (temperature**2 / len(logits))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None
