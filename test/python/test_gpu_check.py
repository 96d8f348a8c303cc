"""What of `scripts/gpu_check` can be checked without a GPU."""

import importlib.util
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    ended = subprocess.run(
        [ROOT / "scripts/gpu_check", tmp_path / "out"], capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert ended.stderr == "gpu_check: expected a GPU that torch can use, found none\n"
    assert not (tmp_path / "out").exists()


def test_its_calls_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """With copies on the CPU in the GPU's place."""
    spec = importlib.util.spec_from_file_location("calls", ROOT / "test/gpu/calls.py")
    assert spec is not None
    assert spec.loader is not None
    calls = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(calls)
    copies: list[Tensor] = []

    def cuda(tensor: Tensor) -> Tensor:
        copies.append(tensor.clone())
        return copies[-1]

    monkeypatch.setattr(Tensor, "cuda", cuda)
    calls.attention_calls(torch.bfloat16, 71, 5, 6)
    calls.cache_calls(torch.float32, torch.int8, 64)
    calls.merge_calls(torch.float16)
    assert len(copies) == 40
    with pytest.raises(AssertionError, match="name: 1"):
        calls.compare("name", torch.zeros(2), torch.ones(2), 0.5)
