"""JSON files with what a command measured."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mqa.replacing import replacing_files


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Writes a report, whole or not at all.

    Raises:
        OSError: that fails.
    """
    with replacing_files(path.parent) as new:
        (new / path.name).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def read_report(path: Path, command: str, keys: Collection[str]) -> dict[str, Any]:
    """The report in a file.

    Args:
        path: the file.
        command: that wrote it, such as "mqa convert", for messages.
        keys: what its reports have.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file ({error})") from error
    if not isinstance(report, dict) or not report.keys() >= set(keys):
        raise ValueError(f"expected {path} to be a report of {command}")
    return report
