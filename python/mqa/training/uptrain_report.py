"""What `mqa uptrain` writes down of a training: all that its plot is drawn from."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mqa.bench.device import DEVICES
from mqa.bench.machine import circumstances
from mqa.training.uptraining import Uptraining

KEYS = {"identity", "model", "num_kv_heads", "teacher", "tokens", "training", "held_out"}


def make_report(training: Uptraining, model: Path, teacher: Path | None) -> dict[str, Any]:
    """The report of a training that is done.

    Args:
        training: the training.
        model: where the model was loaded.
        teacher: where the teacher was loaded.
    """
    schedule, log = training.trainer.schedule, training.log
    seen = schedule.step_tokens * len(log.losses)
    return {
        **circumstances(DEVICES["cpu"]()),
        "identity": dict(training.identity),
        "model": model.stem if model.is_file() else model.resolve().name,
        "num_kv_heads": training.trainer.model.num_kv_heads,
        "teacher": None if teacher is None else str(teacher),
        "schedule": asdict(schedule),
        "seconds": log.seconds,
        "tokens_per_second": seen / log.seconds,
        "training": log.losses,
        "tokens": [step * schedule.step_tokens for step in log.evaluated],
        "held_out": {
            name: {
                "losses": losses,
                "reference": log.reference.get(name),
                "recovered": recovered(losses, log.reference.get(name)),
            }
            for name, losses in log.held_out.items()
        },
    }


def recovered(losses: list[float], reference: float | None) -> float | None:
    """The share of what was lost against the original that training has won back.

    None without an original, or where nothing was lost.
    """
    if reference is None or losses[0] <= reference:
        return None
    return (losses[0] - losses[-1]) / (losses[0] - reference)
