"""Further training of a decoder: what is measured on the way, and going on after a break."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mqa.training.checkpoint import Identity, load_checkpoint, save_checkpoint
from mqa.training.trainer import Trainer


@dataclass
class Log:
    """What a training has measured so far.

    Attributes:
        losses: of each step's pieces of the text, before the step.
        evaluated: the steps after which the held-out texts were read, 0 being the start.
        held_out: their losses then, by name of the text.
        reference: the losses of the original on them.
        seconds: of all steps, without evaluations.
    """

    losses: list[float] = field(default_factory=list)
    evaluated: list[int] = field(default_factory=list)
    held_out: dict[str, list[float]] = field(default_factory=dict)
    reference: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Uptraining:
    """A training that can be broken off.

    Attributes:
        trainer: does the steps.
        texts: held-out tokens, by name.
        identity: of all that decides the bits of weights and losses.
        checkpoint: the file to go on from.
        evaluate_every: steps between two readings of `texts`, which start and end with one.
        checkpoint_every: steps between two checkpoints.
        log: what has been measured so far.
    """

    trainer: Trainer
    texts: Mapping[str, Tensor]
    identity: Identity
    checkpoint: Path
    evaluate_every: int
    checkpoint_every: int
    log: Log = field(default_factory=Log)

    def resume(self) -> bool:
        """Goes on where the checkpoint is, if there is one.

        Raises:
            OSError: it cannot be read.
            ValueError: it is damaged, or of another training.
        """
        if not self.checkpoint.exists():
            return False
        state = load_checkpoint(self.checkpoint, self.identity)
        self.trainer.load_state_dict(state["trainer"])
        vars(self.log).update(state["log"])
        return True

    def save(self) -> None:
        """Writes the checkpoint.

        Raises:
            OSError: that fails; the earlier one is still there.
        """
        state: dict[str, Any] = {"trainer": self.trainer.state_dict(), "log": asdict(self.log)}
        save_checkpoint(self.checkpoint, self.identity, state)

    def run(self, on_step: Callable[[], None]) -> None:
        """Does the steps that are left.

        Args:
            on_step: called after each.

        Raises:
            OSError: a checkpoint cannot be written.
            FloatingPointError: a loss is not finite.
        """
        steps = self.trainer.schedule.steps
        while self.trainer.step < steps:
            if self.trainer.step % self.evaluate_every == 0:
                self._evaluate()
            start = time.perf_counter()
            self.log.losses.append(self.trainer.advance())
            self.log.seconds += time.perf_counter() - start
            if self.trainer.step % self.checkpoint_every == 0 or self.trainer.step == steps:
                self.save()
            on_step()
        self._evaluate()

    def _evaluate(self) -> None:
        self.log.evaluated.append(self.trainer.step)
        for name, tokens in self.texts.items():
            self.log.held_out.setdefault(name, []).append(self.trainer.validate(tokens))
