"""What a CPU can do at most, measured by the tool `mqa-floor` on a number of threads.

- bandwidth: of reads, with a working set as large as the call's caches together, see
  `CpuFloor.bandwidth`; where the caches are cold, the better of that and what `Reader` reached
  during the case;
- peak: float32 multiply-adds for float32 and float16, whose products the kernels accumulate in
  float32; for bfloat16, also as the query of an 8-bit cache, the best of AMX tiles, bfloat16 dot
  products and float32 multiply-adds;
- exp rate: of a polynomial within 1e-7 for float32 and float16, and of a shorter one, within 1e-4,
  for bfloat16, to which weights are rounded anyway.

On vector units products and exponentials compete, so what can be reached lies above the floor.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mqa.bench.floor import Floor

TOOL = Path(__file__).resolve().parent.parent / "bin" / "mqa-floor"


@dataclass(frozen=True)
class CpuFloor(Floor):
    """What a CPU can do at most on a number of threads, per second.

    Attributes:
        isa: The instruction set that the kernels use.
        read: Bytes read per second by size of the working set in bytes, sizes ascending.
        float32_fma: Flops of multiply-adds.
        bfloat16_dot: Flops of bfloat16 dot products, or None without them.
        bfloat16_amx: Flops of bfloat16 tiles, or None without them.
        exp_float32: Exponentials accurate to float32.
        exp_bfloat16: Exponentials accurate to bfloat16.
    """

    isa: str
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
        """Of the best unit for a query of this dtype."""
        units = [self.float32_fma]
        if dtype == "bfloat16":
            units += [unit for unit in (self.bfloat16_dot, self.bfloat16_amx) if unit]
        return max(units)

    def exp_rate(self, dtype: str) -> float:
        """Exponentials per second for a query of this dtype."""
        return self.exp_bfloat16 if dtype == "bfloat16" else self.exp_float32

    def slopes(self) -> dict[str, float]:
        """Reads of memory, and of what the processor caches."""
        sizes = {"read, memory": max(self.read), "read, 1 MiB": 2**20}
        return {name: self.bandwidth(size) for name, size in sizes.items()}

    def roofs(self) -> dict[str, float]:
        """Of the units that it has."""
        units = {
            "float32 multiply-add": self.float32_fma,
            "bfloat16 dot": self.bfloat16_dot,
            "AMX": self.bfloat16_amx,
        }
        return {name: peak for name, peak in units.items() if peak}


def measure(threads: int, tool: Path = TOOL) -> CpuFloor:
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


def parse(report: dict[str, Any]) -> CpuFloor:
    """What the tool printed."""
    read = {row["bytes"]: row["bytes_per_second"] for row in report["read"]}
    return CpuFloor(**{**report, "read": dict(sorted(read.items()))})
