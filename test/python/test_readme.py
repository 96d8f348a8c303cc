"""The Python in README.md runs as it stands, one block after the other."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from programs import ROOT
from smollm2 import install


def test_python_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    gguf = install(ROOT / "build/demo/smollm2")
    (tmp_path / "SmolLM2-135M-Instruct.gguf").symlink_to(gguf)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    program = tmp_path / "readme.py"  # a file, because TorchScript reads the source
    program.write_text("\n".join(blocks))
    names: dict[str, Any] = runpy.run_path(str(program), run_name="readme")

    assert names["out"].shape == (2, 32, 1, 128)
    assert names["multi_query"].config.num_kv_heads == 1
    arguments = [names[name] for name in ("query", "key", "value", "keys", "values")]
    step = torch.jit.load("decode_step.pt")
    assert torch.equal(step(*arguments, torch.tensor([7, 7])), names["out"])
    assert torch.jit.load("mqa.pt").new_cache(1, 4)[0].shape == (1, 1, 4, 64)
