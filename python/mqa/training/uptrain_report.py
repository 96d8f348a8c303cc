"""What `mqa uptrain` writes down of a training: all that its plot is drawn from."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mqa.bench.device import DEVICES
from mqa.bench.machine import describe_machine, versions
from mqa.replacing import replacing_files
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
        "machine": describe_machine(DEVICES["cpu"]()),
        "versions": versions(),
        "command": ["mqa", *sys.argv[1:]],
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


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Writes the report.

    Raises:
        OSError: that fails.
    """
    with replacing_files(path.parent) as new:
        (new / path.name).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def read_report(path: Path) -> dict[str, Any]:
    """The report in a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file ({error})") from error
    if not isinstance(report, dict) or not report.keys() >= KEYS:
        raise ValueError(f"expected {path} to be a report of mqa uptrain")
    return report
