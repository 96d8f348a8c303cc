"""The C++ programs under test, found in the build folder."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BUILD_TREE = ROOT / os.environ.get("MQA_BUILD_TREE", "build/release")


def program(name: str) -> Path:
    """A program of examples/generate."""
    path = BUILD_TREE / "examples" / "generate" / name
    assert path.is_file(), f"{path} is missing: build it with scripts/setup, or set MQA_BUILD_TREE"
    return path


def refusal(*command: str | Path) -> str:
    """What a command says that is expected to refuse: one sentence and exit code 2."""
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 2, result
    assert result.stdout == ""
    sentence, end = result.stderr[:-1], result.stderr[-1:]
    assert end == "\n"
    assert sentence.isprintable(), sentence  # one line
    assert ". " not in sentence, sentence
    assert sentence.startswith(f"{Path(command[0]).name}: "), sentence
    assert "Exception" not in sentence
    return sentence


def generate_command(model: Path, **options: Any) -> list[str | Path]:
    """The command line of `generate` with these options."""
    command = [program("generate"), "--model", model]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        command += [flag] if value is True else [flag, str(value)]
    return command


def generate_json(model: Path, **options: Any) -> dict[str, Any]:
    """What `generate --json` answers."""
    command = generate_command(model, json=True, **options)
    result: dict[str, Any] = json.loads(
        subprocess.run(command, capture_output=True, check=True).stdout
    )
    return result
