"""The least time that a call can take on this machine.

The tool `mqa-floor` measures the machine on a number of threads. A call takes at least

    max(bytes / read bandwidth, flops / peak, exps / exp rate)

whose terms are:

- read bandwidth: with a working set as large as the call's caches together, see `Floor.bandwidth`;
  where the caches are cold, the better of that and what `Reader` reached during the case;
- peak: float32 multiply-adds for float32 and float16, whose products the kernels accumulate in
  float32; for bfloat16, also as the query of an 8-bit cache, the best of AMX tiles, bfloat16 dot
  products and float32 multiply-adds;
- exp rate: of a polynomial within 1e-7 for float32 and float16, and of a shorter one, within 1e-4,
  for bfloat16, to which weights are rounded anyway.

The terms are not added, as if reads, products and exponentials overlapped perfectly. On
vector units products and exponentials compete, so what can be reached lies above this floor.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mqa.bench.cases import Case

TOOL = Path(__file__).resolve().parent.parent / "bin" / "mqa-floor"


@dataclass(frozen=True)
class Floor:
    """What the machine can do at most on a number of threads, per second.

    Attributes:
        isa: The instruction set that the kernels use.
        threads: Threads that ran at once.
        read: Bytes read per second by size of the working set in bytes, sizes ascending.
        float32_fma: Flops of multiply-adds.
        bfloat16_dot: Flops of bfloat16 dot products, or None without them.
        bfloat16_amx: Flops of bfloat16 tiles, or None without them.
        exp_float32: Exponentials accurate to float32.
        exp_bfloat16: Exponentials accurate to bfloat16.
    """

    isa: str
    threads: int
    read: dict[int, float]
    float32_fma: float
    bfloat16_dot: float | None
    bfloat16_amx: float | None
    exp_float32: float
    exp_bfloat16: float

    def bandwidth(self, working_set: int) -> float:
        """Bytes per second of the largest measured working set that is not larger.

        That is rather too fast than too slow. One below all that were measured gets the smallest's.
        """
        smaller = [size for size in self.read if size <= working_set]
        return self.read[max(smaller) if smaller else min(self.read)]

    def peak(self, dtype: str) -> float:
        """Flops per second for a query of this dtype."""
        units = [self.float32_fma]
        if dtype == "bfloat16":
            units += [unit for unit in (self.bfloat16_dot, self.bfloat16_amx) if unit]
        return max(units)

    def exp_rate(self, dtype: str) -> float:
        """Exponentials per second for a query of this dtype."""
        return self.exp_bfloat16 if dtype == "bfloat16" else self.exp_float32


@dataclass(frozen=True)
class Bound:
    """The least seconds of a call, and which term they come from: memory, flops or exps."""

    seconds: float
    term: str


def measure(threads: int, tool: Path = TOOL) -> Floor:
    """Runs the tool, which takes two seconds and 1 GiB.

    Raises:
        ValueError: The tool is missing or fails.
    """
    if not tool.exists():
        raise ValueError(f"expected the program {tool}, found none: run scripts/setup")
    result = subprocess.run([tool, str(threads)], capture_output=True, text=True)
    if result.returncode != 0:
        raise ValueError(result.stderr.strip() or f"{tool} ended with {result.returncode}")
    return parse(json.loads(result.stdout))


def parse(report: dict[str, Any]) -> Floor:
    """What the tool printed."""
    read = {row["bytes"]: row["bytes_per_second"] for row in report["read"]}
    return Floor(**{**report, "read": dict(sorted(read.items()))})


def bound(case: Case, floor: Floor, working_set: int, read_bandwidth: float = 0) -> Bound:
    """The least seconds of a call.

    Args:
        case: The call.
        floor: The machine.
        working_set: Bytes of all the caches that calls take turns over.
        read_bandwidth: Bytes per second that were read during the case, if they were measured.
    """
    terms = {
        "memory": case.bytes / max(floor.bandwidth(working_set), read_bandwidth),
        "flops": case.flops / floor.peak(case.dtype),
        "exps": case.exps / floor.exp_rate(case.dtype),
    }
    term = max(terms, key=terms.__getitem__)
    return Bound(terms[term], term)
