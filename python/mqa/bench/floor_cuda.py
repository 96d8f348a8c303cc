"""What a GPU can do at most, measured through PyTorch.

- bandwidth: of a copy within its memory, bytes read and written; where the caches are cold, the
  better of that and what `Copier` reached during the case;
- peak: a large matrix product in the query's dtype, without TF32 for float32;
- exp rate: none is measured, exponentials count as free.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from mqa.bench.floor import Floor

COPIED_BYTES = 2**30  # more than any L2
PRODUCT_SIZES = {"bfloat16": 8192, "float16": 8192, "float32": 4096}
SAMPLES = 9

Seconds = Callable[[Callable[[], object]], float]  # that the device takes for a function


@dataclass(frozen=True)
class CudaFloor(Floor):
    """What a GPU can do at most, per second.

    Attributes:
        copy: Bytes of a copy, read and written.
        product: Flops of a matrix product by dtype.
    """

    copy: float
    product: dict[str, float]

    def bandwidth(self, working_set: int) -> float:
        """That of a copy, whatever the working set: what L2 holds may be faster."""
        return self.copy

    def peak(self, dtype: str) -> float:
        """Of a product in this dtype."""
        return self.product[dtype]

    def exp_rate(self, dtype: str) -> float:
        """Free."""
        return float("inf")

    def slopes(self) -> dict[str, float]:
        """The copy."""
        return {"copy": self.copy}

    def roofs(self) -> dict[str, float]:
        """The products of the dtypes that tensor cores multiply, and that they do not."""
        return {f"{dtype} product": peak for dtype, peak in self.product.items()}


def measure(
    device: torch.device,
    seconds: Seconds,
    free_bytes: int,
    threads: int,
    sizes: Mapping[str, int] = PRODUCT_SIZES,
) -> CudaFloor:
    """Takes a second.

    Args:
        device: The GPU.
        seconds: Gives the time that the GPU takes for a function.
        free_bytes: Of its memory.
        threads: For the result.
        sizes: Of the square matrices, by dtype.
    """
    size = min(COPIED_BYTES, free_bytes // 8)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = _median(seconds, lambda: target.copy_(source))
    return CudaFloor(
        threads,
        2 * size / copy,
        {dtype: _product(device, seconds, dtype, n) for dtype, n in sizes.items()},
    )


def _product(device: torch.device, seconds: Seconds, dtype: str, size: int) -> float:
    a, b = torch.randn(2, size, size, device=device, dtype=getattr(torch, dtype))
    out = torch.empty_like(a)
    return 2 * size**3 / _median(seconds, lambda: torch.mm(a, b, out=out))


def _median(seconds: Seconds, function: Callable[[], object]) -> float:
    function()
    return statistics.median(seconds(function) for _ in range(SAMPLES))
