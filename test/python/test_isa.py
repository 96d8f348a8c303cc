"""Every instruction set of the machine, each in a process of its own that MQA_CPU_ISA caps.

Run as a program it is that process: it prints what it used and the errors of some calls as JSON.
"""

import json
import os
import subprocess
import sys
from functools import cache
from typing import TypedDict

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

ISAS = ["generic", "avx2", "avx512", "avx512_bf16", "amx"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HEADS = {"MHA": (8, 8), "GQA": (9, 3), "MQA": (32, 1)}  # H_q, H_kv
TOKENS = {"decode": (1, 1500), "prefill": (200, 200)}  # T, S
CALLS = [f"{d}-{h}-{t}" for d in DTYPES for h in HEADS for t in TOKENS]


class Errors(TypedDict):
    largest: float
    mean: float


class Measured(TypedDict):
    ours: Errors
    torch: Errors


class Report(TypedDict):
    isa: str
    calls: dict[str, Measured]


@cache
def process(isa: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MQA_CPU_ISA": isa}
    return subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module", params=ISAS)
def report(request: pytest.FixtureRequest) -> Report:
    done = process(request.param)
    assert done.returncode == 0, done.stderr
    result: Report = json.loads(done.stdout)
    if result["isa"] != request.param:
        assert ISAS.index(result["isa"]) < ISAS.index(request.param)
        pytest.skip(f"this machine has no {request.param}, its best is {result['isa']}")
    return result


@pytest.mark.parametrize("call", CALLS)
def test_errors_are_at_most_twice_those_of_torch(report: Report, call: str) -> None:
    ours, plain = report["calls"][call]["ours"], report["calls"][call]["torch"]
    slack = 1e-6 if call.startswith("float32") else 0
    assert ours["largest"] <= 2 * plain["largest"] + slack
    assert ours["mean"] <= 1.5 * plain["mean"] + slack


def test_the_variable_is_no_more_than_a_cap() -> None:
    """Without it, and with an empty one, the best instruction set is used."""
    best = json.loads(process("").stdout)["isa"]
    assert best == json.loads(process("amx").stdout)["isa"]


def test_another_name_is_refused_when_the_library_is_loaded() -> None:
    done = process("foo")
    assert done.returncode == 1
    assert done.stderr.endswith(f"MQA_CPU_ISA: expected one of {', '.join(ISAS)}, got 'foo'\n"), (
        done.stderr
    )


def errors(actual: torch.Tensor, exact: torch.Tensor) -> Errors:
    distance = (actual.double() - exact).abs()
    return {"largest": distance.max().item(), "mean": distance.mean().item()}


def measure(call: str) -> Measured:
    import mqa

    dtype_name, heads, tokens = call.split("-")
    dtype, (H_q, H_kv), (T, S) = DTYPES[dtype_name], HEADS[heads], TOKENS[tokens]
    query = torch.randn(2, H_q, T, 64).to(dtype)
    key, value = (torch.randn(2, H_kv, S, 64).to(dtype) for _ in range(2))

    def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(
            query, key, value, is_causal=T == S, enable_gqa=H_q != H_kv
        )

    exact = plain(query.double(), key.double(), value.double())
    out = mqa.attention(query, key, value, is_causal=True)
    return {"ours": errors(out, exact), "torch": errors(plain(query, key, value), exact)}


def main() -> None:
    import mqa

    torch.manual_seed(0)
    report: Report = {"isa": mqa.cpu_isa(), "calls": {call: measure(call) for call in CALLS}}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
