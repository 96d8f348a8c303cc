"""The C++ programs under test, found in the build folder."""

import os
import subprocess
from pathlib import Path

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
