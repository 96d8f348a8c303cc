"""What kv_append writes, bit by bit, and that attention reads it back."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mqa
import oracle
from cases import FLOATS, QUANTISED, build, poisoned, same_bits
from devices import Ops
from strategies import HEAD_DIMS, PAGE_SIZES
from transforms import LAYOUTS, batch_rows, pack, restrided, unpack


def write(cache: Tensor, new: Tensor, positions: Tensor, block_table: Tensor | None) -> Tensor:
    """A copy of `cache` with `new [B, H_kv, T, ...]` in it."""
    cache = cache.clone()
    for b, first in enumerate(positions.tolist()):
        for t in range(new.size(2)):
            row, slot = b, first + t
            if block_table is not None:
                page, slot = divmod(slot, cache.size(2))
                row = int(block_table[b, page])
            cache[row, :, slot] = new[b, :, t]
    return cache


def page_table(B: int, pages: int, needed: Tensor) -> Tensor:
    """A random table into `3 * B * pages` pages, garbage where `needed [B, pages]` is false."""
    table = torch.randperm(3 * B * pages)[: B * pages].view(B, pages)
    return table.masked_fill(~needed, -1).int()


@settings(max_examples=300)
@given(st.data())
def test_any_append(ops: Ops, data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 2**16)))
    B, H_kv, T = draw(st.integers(0, 3)), draw(st.integers(1, 4)), draw(st.integers(0, 9))
    page_size, pages = draw(PAGE_SIZES), draw(st.integers(1, 4))
    capacity = page_size * pages
    T = min(T, capacity)
    dtype, cache_dtype = draw(st.sampled_from(FLOATS)), draw(st.sampled_from(FLOATS + QUANTISED))
    per_head, is_paged = draw(st.booleans()), draw(st.booleans())
    first = draw(st.lists(st.integers(0, capacity - T), min_size=B, max_size=B))
    positions = torch.tensor(first, dtype=draw(st.sampled_from([torch.int32, torch.int64])))

    options: dict[str, Any] = {}
    rows, slots = B, capacity
    if is_paged:
        page = torch.arange(pages) * page_size
        begin = positions.view(-1, 1)
        written = (page < begin + T) & (page + page_size > begin)
        rows, slots = 3 * B * pages, page_size
        options["block_table"] = page_table(B, pages, written)

    args: dict[str, Tensor] = {"positions": positions}
    expected: dict[str, Tensor] = {}
    for name in ("key", "value"):
        new = torch.randn(B, H_kv, T, draw(HEAD_DIMS)).to(dtype)
        cache = poisoned((rows, H_kv, slots, new.size(-1)), cache_dtype)
        args[name] = restrided(new, draw(st.sampled_from(LAYOUTS)))
        args[name + "_cache"] = restrided(
            cache, draw(st.sampled_from(["contiguous", "transposed", "sliced"]))
        )
        codes = new.to(cache_dtype)
        if cache_dtype in QUANTISED:
            scale = (
                torch.rand(H_kv) * 0.02 + 0.001
                if per_head
                else poisoned((rows, H_kv, slots), torch.float32)
            )
            codes, scales = oracle.quantise(
                new, cache_dtype, scale.view(-1, 1) if per_head else None
            )
            options[name + "_scale"] = restrided(scale, draw(st.sampled_from(LAYOUTS)))
            expected[name + "_scale"] = (
                scale if per_head else write(scale, scales, positions, options.get("block_table"))
            )
        expected[name + "_cache"] = write(cache, codes, positions, options.get("block_table"))

    ops.kv_append(**args, **options)
    for name, tensor in expected.items():
        assert same_bits((args | options)[name], tensor), name


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("is_paged", [False, True])
@pytest.mark.parametrize("cache_dtype", FLOATS + QUANTISED)
@pytest.mark.parametrize(("T", "D"), [(0, 8), (1, 80), (7, 128), (90, 576)])
def test_packed_keys(T: int, D: int, cache_dtype: torch.dtype, is_paged: bool, layout: str) -> None:
    """The same as in order, and nothing else."""
    positions = torch.tensor([0, 21])
    rows, slots = (8, 32) if is_paged else (2, 128)
    options: dict[str, Tensor] = {}
    if is_paged:
        options["block_table"] = torch.randperm(8, dtype=torch.int32).view(2, 4)
    if cache_dtype in QUANTISED:
        scales = [poisoned((rows, 3, slots), torch.float32) for _ in range(2)]
        options |= dict(zip(("key_scale", "value_scale"), scales, strict=True))
    key, value = torch.randn(2, 2, 3, T, D)
    in_order = poisoned((rows, 3, slots, D), cache_dtype)
    together = restrided(pack(in_order), layout)
    results = []
    for key_cache in (in_order, together):
        value_cache = poisoned((rows, 3, slots, D), cache_dtype)
        copies = {name: x.clone() for name, x in options.items()}
        mqa.kv_append(key_cache, value_cache, key, value, positions, **copies)
        results.append([value_cache, *copies.values()])
    assert same_bits(unpack(together), in_order)
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))
    assert same_bits(in_order, poisoned(in_order.shape, cache_dtype)) == (T == 0)


@pytest.mark.parametrize("dtype", QUANTISED)
@pytest.mark.parametrize("per_head", [False, True])
def test_quantisation_error(ops: Ops, dtype: torch.dtype, per_head: bool) -> None:
    """int8: half a step. float8_e4m3fn: half of its 2^-3 relative steps, or of the smallest."""
    new = torch.randn(2, 3, 5, 64)
    cache = poisoned((2, 3, 5, 64), dtype)
    scale = new.abs().amax((0, 2, 3)) / oracle.QUANTISED_MAX[dtype]
    scale = scale if per_head else poisoned((2, 3, 5), torch.float32)
    ops.kv_append(
        cache,
        cache.clone(),
        new,
        new,
        torch.zeros(2).int(),
        key_scale=scale,
        value_scale=scale.clone(),
    )
    step = scale.view(-1, 1, 1) if per_head else scale.unsqueeze(-1)
    relative, smallest = (0, 1) if dtype == torch.int8 else (2**-3, 2**-9)
    bound = torch.maximum(new.abs() * relative, step * smallest) / 2 * (1 + 1e-6)
    assert ((oracle.dense(cache, scale, None, torch.float32) - new).abs() <= bound).all()


def test_row_of_zeros_quantises_to_zeros(ops: Ops) -> None:
    cache, scale = poisoned((1, 1, 2, 8), torch.int8), poisoned((1, 1, 2), torch.float32)
    zeros = torch.zeros(1, 1, 2, 8)
    ops.kv_append(
        cache,
        cache.clone(),
        zeros,
        zeros,
        torch.tensor([0]),
        key_scale=scale,
        value_scale=scale.clone(),
    )
    assert not cache.any()
    assert not scale.any()


def test_values_beyond_a_given_scale_saturate(ops: Ops) -> None:
    new = torch.tensor([3.0, -3.0, 1e6, -1e6]).view(1, 1, 1, 4)
    for dtype, largest in oracle.QUANTISED_MAX.items():
        cache = poisoned((1, 1, 1, 4), dtype)
        ones = torch.ones(1)
        ops.kv_append(
            cache, cache.clone(), new, new, torch.tensor([0]), key_scale=ones, value_scale=ones
        )
        assert cache.float().flatten().tolist() == [3, -3, largest, -largest]


def test_latent_cache_is_written_through_a_view(ops: Ops) -> None:
    """Multi-head latent attention: value is the first part of key, in the cache too."""
    cache, new = poisoned((2, 1, 4, 24), torch.float32), torch.randn(2, 1, 3, 24)
    ops.kv_append(cache, cache[..., :16], new, new[..., :16], torch.tensor([0, 1]))
    assert same_bits(cache[0, :, :3], new[0])
    assert same_bits(cache[1, :, 1:], new[1])


@pytest.mark.parametrize("page_size", [None, 4])
@pytest.mark.parametrize("dtype", FLOATS)
def test_decoding_from_an_appended_cache(
    ops: Ops, page_size: int | None, dtype: torch.dtype
) -> None:
    """Ragged prompts in two chunks, then token by token: a step sees exactly what was appended."""
    lens, steps = torch.tensor([3, 7]), 5
    whole = build(B=2, T=16, S=16, dtype=dtype)
    pages = 4 if page_size else 1
    table = page_table(2, pages, torch.ones(2, pages, dtype=torch.bool)) if page_size else None
    shape = (3 * 2 * pages if page_size else 2, 2, page_size or 16, 16)
    caches = poisoned(shape, dtype), poisoned(shape, dtype)

    start = torch.zeros(2, dtype=torch.long)
    for tokens in [lens // 2, lens - lens // 2, *[torch.ones(2, dtype=torch.long)] * steps]:
        for b in range(2):  # one row at a time: the chunks are ragged
            new = slice(int(start[b]), int(start[b] + tokens[b]))
            row = slice(b, b + 1)
            ops.kv_append(
                *(x if page_size else x[row] for x in caches),
                whole["key"][row, :, new],
                whole["value"][row, :, new],
                start[row],
                block_table=None if table is None else table[row],
            )
        start = start + tokens
        query = torch.stack([whole["query"][b, :, n - 1 : n] for b, n in enumerate(start)])
        actual = ops.attention(query, *caches, seq_lens=start, block_table=table)
        for b, n in enumerate(start.tolist()):
            seen = batch_rows(whole.but(query=query), [b]).but(seq_lens=start[b : b + 1])
            assert torch.equal(actual[b : b + 1], ops.attention(**seen)), f"row {b} at length {n}"
