"""Attention forward and backward, as in training: time and memory against PyTorch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, product

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import profile

import mqa
from mqa.bench.device import Device
from mqa.bench.measure import TOLERANCE, difference
from mqa.bench.peers import OURS, SDPA
from mqa.bench.timing import Samples, interleave

HEADS, HEAD_DIM = 16, 64


@dataclass(frozen=True)
class TrainingCase:
    """Forward and backward of `HEADS` query heads of `HEAD_DIM`.

    Attributes:
        dtype: Of everything.
        kv_heads: H_kv.
        length: T = S.
        threads: As in `Case`.
        is_causal: Whether a token sees only those up to itself.
    """

    dtype: str
    kv_heads: int
    length: int
    threads: int
    is_causal: bool


@dataclass(frozen=True)
class TrainingResult:
    """What was measured of a case.

    Attributes:
        case: The case.
        seconds: By contender, of forward and backward together.
        peak_bytes: By contender, the most memory that a step had allocated at a time, results and
            gradients included.
    """

    case: TrainingCase
    seconds: dict[str, Samples]
    peak_bytes: dict[str, int]


def training_cases(
    *, dtypes: Sequence[str], lengths: Sequence[int], threads: Sequence[int]
) -> Iterator[TrainingCase]:
    """MQA and MHA, causal and not."""
    for count, dtype, length, kv_heads, is_causal in product(
        threads, dtypes, lengths, (1, HEADS), (True, False)
    ):
        yield TrainingCase(dtype, kv_heads, length, count, is_causal)


def measure_training(case: TrainingCase, budget: float, device: Device) -> TrainingResult:
    """Times both, after comparing their gradients.

    Raises:
        ValueError: The gradients differ.
    """
    torch.set_num_threads(case.threads)
    generator = torch.Generator(device.torch).manual_seed(0)

    def normal(heads: int) -> Tensor:
        shape = (1, heads, case.length, HEAD_DIM)
        numbers = torch.randn(shape, generator=generator, device=device.torch)
        return numbers.to(getattr(torch, case.dtype))

    inputs = [normal(heads).requires_grad_() for heads in (HEADS, case.kv_heads, case.kv_heads)]
    grad = normal(HEADS)
    query, key, value = inputs

    def ours(_: int) -> tuple[Tensor, ...]:
        out = mqa.attention(query, key, value, is_causal=case.is_causal)
        return torch.autograd.grad(out, inputs, grad)

    def sdpa(_: int) -> tuple[Tensor, ...]:
        out = scaled_dot_product_attention(
            query, key, value, is_causal=case.is_causal, enable_gqa=True
        )
        return torch.autograd.grad(out, inputs, grad)

    for a, b in zip(ours(0), sdpa(0), strict=True):
        largest = difference(a, b)
        if largest > TOLERANCE[case.dtype]:
            raise ValueError(f"gradients of {OURS} and {SDPA} differ by {largest:.2g}")
    steps = {OURS: ours, SDPA: sdpa}
    peak = {name: peak_bytes(step) for name, step in steps.items()}
    timed = {name: device.timed(step, 1, rehearse=False) for name, step in steps.items()}
    return TrainingResult(case, interleave(timed, budget), peak)


def peak_bytes(function: Callable[[int], object]) -> int:
    """The most memory that PyTorch's allocators had given to a call at a time."""
    with profile(profile_memory=True, acc_events=True) as profiler:
        kept = function(0)
    del kept
    kineto = profiler.profiler
    assert kineto is not None
    events = kineto.kineto_results.events()
    return max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))
