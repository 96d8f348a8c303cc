"""Two small tables beside attention: how fast kv_append writes, and what a call costs at least."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

import mqa
from mqa.bench.cases import DTYPE_BYTES, QUANTISED, SCALE_BYTES, Case
from mqa.bench.inputs import make_inputs
from mqa.bench.peers import OURS, SDPA
from mqa.bench.timing import Samples, interleave

COPY = "copy_"

SLOTS = 8192
HEAD_DIM = 128

SHORT_CONTEXT = 128
GROUP = 8


@dataclass(frozen=True)
class AppendResult:
    """Appending `tokens` keys and values to a cache of one sequence and one head of 128.

    An 8-bit cache takes bfloat16 and quantises it; `copy_` writes to a bfloat16 cache then.

    Attributes:
        bytes: By contender: read from the new keys and values and written to the cache.
    """

    cache_dtype: str
    tokens: int
    threads: int
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
def measure_append(cache_dtype: str, tokens: int, threads: int, budget: float) -> AppendResult:
    """Times kv_append against copy_, at positions that move through the cache."""
    torch.set_num_threads(threads)
    source_dtype = "bfloat16" if cache_dtype in QUANTISED else cache_dtype
    source = torch.randn(2, 1, 1, tokens, HEAD_DIM).to(getattr(torch, source_dtype))
    cache = torch.zeros(2, 1, 1, SLOTS, HEAD_DIM, dtype=getattr(torch, cache_dtype))
    copied = torch.zeros(2, 1, 1, SLOTS, HEAD_DIM, dtype=source.dtype)
    scales: Sequence[torch.Tensor | None] = (None, None)
    if cache_dtype in QUANTISED:
        scales = torch.zeros(2, 1, 1, SLOTS).unbind()
    positions = torch.arange(0, SLOTS, tokens).view(-1, 1)
    (keys, values), (key, value) = cache, source

    def append(i: int) -> None:
        position = positions[i % len(positions)]
        mqa.kv_append(
            keys, values, key, value, position, key_scale=scales[0], value_scale=scales[1]
        )

    def copy(i: int) -> None:
        start = i % len(positions) * tokens
        copied[0, :, :, start : start + tokens].copy_(key)
        copied[1, :, :, start : start + tokens].copy_(value)

    elements = 2 * tokens * HEAD_DIM
    read = elements * DTYPE_BYTES[source_dtype]
    written = elements * DTYPE_BYTES[cache_dtype]
    written += 2 * tokens * SCALE_BYTES if cache_dtype in QUANTISED else 0
    seconds = _warm_and_time({OURS: append, COPY: copy}, budget)
    return AppendResult(
        cache_dtype, tokens, threads, seconds, {OURS: read + written, COPY: 2 * read}
    )


@torch.no_grad()
def measure_overhead(dtype: str, threads: int, budget: float) -> OverheadResult:
    """Times mqa.attention against scaled_dot_product_attention at S = 128."""
    torch.set_num_threads(threads)
    case = Case(dtype, GROUP, 64, SHORT_CONTEXT, 1, 1, threads, is_cold=False)
    inputs = make_inputs(case, 1)
    query, key, value = inputs.query, inputs.caches[0].key, inputs.caches[0].value
    functions: dict[str, Callable[[int], object]] = {
        OURS: lambda _: mqa.attention(query, key, value),
        SDPA: lambda _: scaled_dot_product_attention(query, key, value, enable_gqa=True),
    }
    seconds = _warm_and_time(functions, budget)
    return OverheadResult(dtype, SHORT_CONTEXT, GROUP, case.head_dim, threads, seconds)


def _warm_and_time(
    functions: dict[str, Callable[[int], object]], budget: float
) -> dict[str, Samples]:
    for function in functions.values():
        function(0)
    return interleave(functions, budget)
