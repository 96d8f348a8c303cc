"""Two small tables beside attention: how fast kv_append writes, and what a call costs at least."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import mqa
from mqa.bench.cases import QUANTISED, AppendCase, Case
from mqa.bench.device import Device
from mqa.bench.inputs import make_inputs
from mqa.bench.peers import OURS, SDPA
from mqa.bench.timing import Samples, interleave

COPY = "copy_"

LEAST_SLOTS = 8192
SHORT_CONTEXT = 128
GROUP = 8


@dataclass(frozen=True)
class AppendResult:
    """Appending keys and values to a cache that is larger than what is appended.

    Attributes:
        seconds: By contender.
        bytes: By contender: read from the new keys and values and written to the cache.
    """

    case: AppendCase
    seconds: dict[str, Samples]
    bytes: dict[str, int]


@dataclass(frozen=True)
class OverheadResult:
    """A decode step over so few tokens that the time is that of the call itself."""

    dtype: str
    context: int
    group: int
    head_dim: int
    threads: int
    seconds: dict[str, Samples]


@torch.no_grad()
def measure_append(case: AppendCase, budget: float, device: Device) -> AppendResult:
    """Times kv_append against copy_, at positions that move through the cache."""
    torch.set_num_threads(case.threads)
    width = case.HEAD_DIM
    slots = max(LEAST_SLOTS, 2 * case.tokens) // case.tokens * case.tokens

    def zeros(*shape: int, dtype: str) -> Tensor:
        return torch.zeros(shape, dtype=getattr(torch, dtype), device=device.torch)

    source = torch.randn(2, case.batch, 1, case.tokens, width, device=device.torch)
    key, value = source.to(getattr(torch, case.dtype))
    keys, values = zeros(2, case.batch, 1, slots, width, dtype=case.cache_dtype)
    copied = zeros(2, case.batch, 1, slots, width, dtype=case.dtype)
    scales: Sequence[Tensor | None] = (None, None)
    if case.cache_dtype in QUANTISED:
        scales = zeros(2, case.batch, 1, slots, dtype="float32").unbind()
    starts = range(0, slots, case.tokens)
    positions = [
        torch.full((case.batch,), start, dtype=torch.int64, device=device.torch) for start in starts
    ]

    def append(i: int) -> None:
        mqa.kv_append(
            keys, values, key, value, positions[i], key_scale=scales[0], value_scale=scales[1]
        )

    def copy(i: int) -> None:
        place = slice(starts[i], starts[i] + case.tokens)
        copied[0, :, :, place].copy_(key)
        copied[1, :, :, place].copy_(value)

    seconds = _warm_and_time({OURS: append, COPY: copy}, len(starts), budget, device)
    return AppendResult(case, seconds, {OURS: case.bytes, COPY: case.copied_bytes})


@torch.no_grad()
def measure_overhead(dtype: str, threads: int, budget: float, device: Device) -> OverheadResult:
    """Times mqa.attention against scaled_dot_product_attention at S = 128."""
    torch.set_num_threads(threads)
    case = Case(dtype, GROUP, 64, SHORT_CONTEXT, 1, 1, threads, is_cold=False)
    inputs = make_inputs(case, 1, device)
    query, key, value = inputs.query, inputs.caches[0].key, inputs.caches[0].value
    functions: dict[str, Callable[[int], object]] = {
        OURS: lambda _: mqa.attention(query, key, value),
        SDPA: lambda _: scaled_dot_product_attention(query, key, value, enable_gqa=True),
    }
    seconds = _warm_and_time(functions, 1, budget, device)
    return OverheadResult(dtype, SHORT_CONTEXT, GROUP, case.head_dim, threads, seconds)


def _warm_and_time(
    functions: dict[str, Callable[[int], object]], count: int, budget: float, device: Device
) -> dict[str, Samples]:
    for function in functions.values():
        function(0)
    timed = {
        name: device.timed(function, count, rehearse=False) for name, function in functions.items()
    }
    return interleave(timed, budget)
