"""Random inputs of a case: one query, and as many caches as calls take turns over."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

import mqa
from mqa.bench.cases import Case
from mqa.bench.device import Device
from mqa.units import format_bytes

MEMORY_SHARE = 0.6  # of what is available: temporaries of the peers take some too


class NotEnoughMemoryError(Exception):
    """A case's caches do not fit into memory."""


@dataclass(frozen=True)
class Cache:
    """Keys and values [B, H_kv, S, D], and scales [B, H_kv, S] of a quantised cache."""

    key: Tensor
    value: Tensor
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None


@dataclass(frozen=True)
class Inputs:
    """What all contenders of a case compute with.

    Attributes:
        query: [B, H_q, T, D].
        caches: Equal ones, in memory of their own.
        available_memory: Bytes that contenders can still allocate.
    """

    case: Case
    query: Tensor
    caches: list[Cache]
    available_memory: int


def num_caches(case: Case, cold_bytes: int, copies: int, memory: int) -> int:
    """How many caches calls take turns over: as many as `cold_bytes` hold, if memory suffices.

    Args:
        case: The case; one that is not cold has one cache.
        cold_bytes: Bytes that all caches together exceed.
        copies: Contenders that keep their own copy, in a layout of their own, besides the common
            one.
        memory: Bytes available.

    Raises:
        NotEnoughMemoryError: Not even one cache, or two for a cold case, fits.
    """
    least, wanted = (2, -(-cold_bytes // case.cache_bytes)) if case.is_cold else (1, 1)
    most = int(memory * MEMORY_SHARE) // (case.cache_bytes * (1 + copies))
    if most < least:
        needed = format_bytes(least * case.cache_bytes * (1 + copies))
        raise NotEnoughMemoryError(
            f"needs {needed} for caches, {format_bytes(memory)} are available"
        )
    return min(max(wanted, least), most)


def make_inputs(case: Case, count: int, device: Device) -> Inputs:
    """Normally distributed queries, keys and values from a fixed seed."""
    generator = torch.Generator(device.torch).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=generator, device=device.torch)
        return numbers.to(getattr(torch, case.dtype))

    query = normal(case.batch, case.query_heads, case.tokens, case.head_dim)
    first = _fill(case, normal(2, case.batch, case.kv_heads, case.context, case.head_dim))
    return Inputs(case, query, copies_of(first, count), device.available_memory())


def copies_of(cache: Cache, count: int) -> list[Cache]:
    """The cache and copies of it, `count` together."""
    tensors = [cache.key, cache.value, cache.key_scale, cache.value_scale]
    rows = [[None] * count if x is None else copy_tensor(x, count) for x in tensors]
    return [Cache(*row) for row in zip(*rows, strict=True)]


def copy_tensor(tensor: Tensor, count: int) -> list[Tensor]:
    """The tensor's content `count` times, each in memory of its own."""
    return [*tensor.expand(count, *tensor.shape).contiguous().unbind()]


def dequantised(cache: Cache, dtype: torch.dtype) -> Cache:
    """An unquantised cache with the same values."""
    if cache.key_scale is None or cache.value_scale is None:
        return Cache(cache.key.to(dtype), cache.value.to(dtype))
    key = cache.key.float() * cache.key_scale[..., None]
    value = cache.value.float() * cache.value_scale[..., None]
    return Cache(key.to(dtype), value.to(dtype))


def packed(cache: Cache) -> Cache:
    """The same cache with packed keys; S is a multiple of 16."""
    return replace(cache, key=cache.key.unflatten(2, (-1, 16)).transpose(3, 4).contiguous())


def _fill(case: Case, content: Tensor) -> Cache:
    key, value = content
    if not case.is_quantised:
        return Cache(key, value)
    keys, values = torch.empty_like(content, dtype=getattr(torch, case.cache_dtype))
    key_scale, value_scale = torch.empty_like(content[..., 0], dtype=torch.float32)
    start = torch.zeros(case.batch, dtype=torch.int64, device=content.device)
    mqa.kv_append(keys, values, key, value, start, key_scale=key_scale, value_scale=value_scale)
    return Cache(keys, values, key_scale, value_scale)
