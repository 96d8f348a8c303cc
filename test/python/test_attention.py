"""Attention and its lse against the float64 oracle, on drawn calls and on a fixed grid."""

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings

import oracle
from cases import FLOATS, QUANTISED, Case, build, quantised, random_mask
from devices import Ops
from strategies import attention_cases
from transforms import paged


def check(ops: Ops, case: Case) -> None:
    dtype = case["query"].dtype
    accumulator = torch.promote_types(dtype, torch.float32)
    out, lse = ops.attention_lse(**case)
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert lse.dtype == accumulator
    assert lse.is_contiguous()
    assert torch.equal(ops.attention(**case), out)

    exact = oracle.attention(**case)
    plain = {d: oracle.attention(**case, dtype=d) for d in {dtype, accumulator}}
    oracle.assert_as_accurate_as_torch(out, exact[0], plain[dtype][0])
    oracle.assert_as_accurate_as_torch(lse, exact[1], plain[accumulator][1])


@settings(max_examples=400)
@given(attention_cases())
def test_any_call(ops: Ops, case: Case) -> None:
    check(ops, case)


@pytest.mark.parametrize("dtype", QUANTISED)
@pytest.mark.parametrize("G", [1, 20])
@pytest.mark.parametrize("D", [128, 80, 5])
def test_a_single_key_of_8_bits_is_rounded_once(dtype: torch.dtype, G: int, D: int) -> None:
    case = quantised(build(B=60, H_kv=1, G=G, S=1, D_v=D, dtype=torch.bfloat16), dtype)
    exact = case["value"].float() * case["value_scale"].unsqueeze(-1)
    out = torch.ops.mqa.attention(**case)
    assert ((out - exact).abs() <= exact.abs() * 2**-8 * 1.001).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": random_mask(torch.bool, (6, 1, 17))},
        {"attn_mask": random_mask(torch.float64, (2, 1, 17, 17))},
    ],
)
def test_the_oracle_agrees_with_torch(options: dict[str, Any]) -> None:
    case = build(T=17, S=17, D_v=8, dtype=torch.float64, **options)
    out = torch.nn.functional.scaled_dot_product_attention(**case, enable_gqa=True)
    torch.testing.assert_close(oracle.attention(**case)[0], out)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_a_visible_nan_is_not_hidden(ops: Ops, name: str, dtype: torch.dtype) -> None:
    case = build(B=1, H_kv=1, T=2, S=40, dtype=dtype)
    case[name][0, 0, 1, 3] = torch.nan
    spoiled = ops.attention(**case).isnan()
    expected = torch.zeros_like(spoiled)
    if name == "query":
        expected[0, 0, 1] = True
    elif name == "key":
        expected[:] = True
    else:
        expected[..., 3] = True
    assert torch.equal(spoiled, expected)


def test_mask_without_dimensions(ops: Ops) -> None:
    case = build()
    for mask, same in [(torch.tensor(True), True), (torch.tensor(False), False)]:
        out = ops.attention(**case, attn_mask=mask)
        assert torch.equal(out, ops.attention(**case) if same else torch.zeros_like(out))


GROUPS = [3, 5, 7, 9, 13, 26, 48, 71]
LENGTHS = [0, 1, 15, 16, 17, 63, 64, 65, 339, 799, 4095]
BLOCKS = [1, 4, 16, 128]
PAGES = [None, 1, 4, 16, 128]
CACHES = [None, *QUANTISED]
MOST_SCORES = 4_000_000  # what the oracle computes in a moment


def pairwise(*axes: list[Any], allowed: Callable[..., bool]) -> Iterator[tuple[Any, ...]]:
    """Combinations enough for every allowed pair of values from two axes."""
    combinations = [c for c in itertools.product(*axes) if allowed(*c)]
    random.Random(0).shuffle(combinations)
    seen: set[Any] = set()
    for combination in combinations:
        pairs = set(itertools.combinations(enumerate(combination), 2))
        if not pairs <= seen:
            seen |= pairs
            yield combination


def is_affordable(group: int, length: int, block: int, *_: Any) -> bool:
    return group * length * block <= MOST_SCORES


@pytest.mark.parametrize(
    ("group", "length", "block", "page", "dtype", "cache"),
    [
        *pairwise(GROUPS, LENGTHS, BLOCKS, PAGES, FLOATS, CACHES, allowed=is_affordable),
        (3, 131072, 1, None, torch.float32, None),
        (7, 131072, 16, 1, torch.float32, None),
        (5, 131072, 1, 4, torch.float64, None),
        (9, 131072, 4, 16, torch.bfloat16, None),
        (71, 131072, 1, 128, torch.float16, torch.int8),
    ],
)
def test_grid(
    ops: Ops,
    group: int,
    length: int,
    block: int,
    page: int | None,
    dtype: torch.dtype,
    cache: torch.dtype | None,
) -> None:
    lens = [length] if length > 4095 else [length, length // 2]
    case = build(
        B=len(lens), H_kv=1, G=group, T=block, S=length, D=64, dtype=dtype, seq_lens=lens
    ).but(is_causal=True)
    if cache is not None:
        case = quantised(case, cache)
    check(ops, case if page is None else paged(case, page))
