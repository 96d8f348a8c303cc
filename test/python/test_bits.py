"""The bit contract: a row's result depends on its query, what it sees, and the options.

Everything else may change (batch, threads, capacity, pages, unused slots, strides, how many tokens
come in one call) and the bits stay. On CUDA the last holds among calls with few rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import mqa
from cases import FLOATS, QUANTISED, Case, build, fill_unused, quantised
from devices import Ops
from strategies import PAGE_SIZES, attention_cases, dense_cases
from transforms import (
    LAYOUTS,
    batch_rows,
    packed,
    paged,
    query_head,
    query_rows,
    restrided,
    with_capacity,
)

CPU = Ops("cpu")


def assert_same(ops: Ops, actual: Case, expected: tuple[Tensor, Tensor]) -> None:
    for a, e in zip(ops.attention_lse(**actual), expected, strict=True):
        assert torch.equal(a, e)


def rows_per_kv_head(case: Case) -> int:
    return case["query"].size(1) // case["key"].size(1) * case["query"].size(2)


@given(attention_cases(), st.data())
def test_batch(ops: Ops, case: Case, data: st.DataObject) -> None:
    """Alone, in another place, among other rows."""
    out, lse = ops.attention_lse(**case)
    rows = data.draw(st.lists(st.sampled_from(range(len(out))), max_size=4)) if len(out) else []
    assert_same(ops, batch_rows(case, rows), (out[rows], lse[rows]))


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@settings(max_examples=50)
@given(attention_cases(), st.integers(2, 5))
def test_threads(case: Case, count: int) -> None:
    with threads(1):
        expected = mqa.attention_lse(**case)
    with threads(count):
        assert_same(CPU, case, expected)


@pytest.mark.parametrize(("T", "S"), [(1, 20_000), (700, 900)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_threads_where_they_share_work(dtype: torch.dtype, T: int, S: int) -> None:
    """Few rows over many keys are split over the keys, many rows over rows."""
    case = build(B=1, H_kv=1, G=5, T=T, S=S, D=32, dtype=dtype).but(is_causal=True)
    with threads(1):
        expected = mqa.attention_lse(**case)
    for count in (2, 3, 8):
        with threads(count):
            assert_same(CPU, case, expected)


@given(dense_cases(), st.sampled_from([1, 3, 64, 700]))
def test_capacity(ops: Ops, case: Case, extra: int) -> None:
    assert_same(ops, with_capacity(case, case["key"].size(2) + extra), ops.attention_lse(**case))


@given(dense_cases(), PAGE_SIZES, st.sampled_from([None, *QUANTISED]), st.booleans())
def test_pages(
    ops: Ops, case: Case, page_size: int, cache: torch.dtype | None, per_head: bool
) -> None:
    case = case if cache is None else quantised(case, cache, per_head=per_head)
    assert_same(ops, paged(case, page_size), ops.attention_lse(**case))


@given(
    dense_cases(),
    st.sampled_from([None, 16, 48]),
    st.sampled_from([None, *QUANTISED]),
    st.booleans(),
    st.sampled_from(LAYOUTS),
)
def test_packed_keys(
    ops: Ops,
    case: Case,
    page_size: int | None,
    cache: torch.dtype | None,
    per_head: bool,
    layout: str,
) -> None:
    case = case if cache is None else quantised(case, cache, per_head=per_head)
    same = packed(paged(case, page_size) if page_size else case)
    same["key"] = restrided(same["key"], layout)
    assert_same(ops, same, ops.attention_lse(**case))


@given(dense_cases(), st.sampled_from([0.0, torch.inf, -torch.inf, 6e4]))
def test_unused_slots(ops: Ops, case: Case, fill: float) -> None:
    case = with_capacity(case, case["key"].size(2) + 5)
    assert_same(ops, fill_unused(case, fill), ops.attention_lse(**case))


@given(dense_cases(), st.data())
def test_strides(ops: Ops, case: Case, data: st.DataObject) -> None:
    strided = {
        name: restrided(x, data.draw(st.sampled_from(LAYOUTS)))
        for name, x in case.tensors().items()
    }
    assert_same(ops, case.but(**strided), ops.attention_lse(**case))


@pytest.mark.parametrize("dtype", FLOATS)
def test_many_heads_side_by_side(dtype: torch.dtype) -> None:
    """They go through their chunks together, those of contiguous caches one after the other."""
    case = build(B=2, H_kv=19, G=2, T=3, S=600, D=32, dtype=dtype).but(
        is_causal=True, seq_lens=torch.tensor([600, 300])
    )
    strided = {name: restrided(case[name], "transposed") for name in ("key", "value")}
    expected = mqa.attention_lse(**case)
    for count in (1, 3):
        with threads(count):
            assert_same(CPU, case.but(**strided), expected)


@given(dense_cases(), st.integers(1, 7), st.sampled_from([None, 4]))
def test_token_by_token_or_in_chunks_or_at_once(
    ops: Ops, case: Case, chunk: int, page_size: int | None
) -> None:
    assume(rows_per_kv_head(case) <= ops.rows_of_same_bits)
    B, _, T, _ = case["query"].shape
    lens = case.get("seq_lens", torch.full((B,), case["key"].size(2)))
    case = (case if page_size is None else paged(case, page_size)).but(is_causal=True)
    out, lse = ops.attention_lse(**case)
    first = max(0, T - int(lens.min())) if B else 0  # earlier ones stand before the first key
    for start in range(first, T, chunk):
        rows = slice(start, min(start + chunk, T))
        part = query_rows(case, rows.start, rows.stop)
        assert_same(ops, part, (out[:, :, rows], lse[:, :, rows]))


@given(attention_cases(), st.data())
def test_group(ops: Ops, case: Case, data: st.DataObject) -> None:
    """A query head alone, or with the others that share its KV head."""
    assume(rows_per_kv_head(case) <= ops.rows_of_same_bits)
    out, lse = ops.attention_lse(**case)
    head = data.draw(st.integers(0, out.size(1) - 1))
    one = slice(head, head + 1)
    assert_same(ops, query_head(case, head), (out[:, one], lse[:, one]))


@pytest.mark.parametrize("dtype", FLOATS)
def test_prefill_rows_are_decode_rows(ops: Ops, dtype: torch.dtype) -> None:
    """A prompt at once, as long as it may be, against some of its tokens decoded."""
    T = min(600, ops.rows_of_same_bits // 9)
    case = build(B=2, H_kv=1, G=9, T=T, S=1100, D=64, dtype=dtype, seq_lens=[1100, 777])
    case["is_causal"] = True
    out, lse = ops.attention_lse(**case)
    for t in range(0, T, max(1, T // 16)):
        row = slice(t, t + 1)
        assert_same(ops, query_rows(case, t, t + 1), (out[:, :, row], lse[:, :, row]))
