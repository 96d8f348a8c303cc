"""Autocast: attention runs in the autocast dtype, kv_append in the cache's."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

import mqa
from cases import FLOATS, QUANTISED, build, quantised, random_mask, same_bits
from devices import Ops

LOW = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("op", ["attention", "attention_lse"])
def test_attention_in_one_dtype(ops: Ops, op: str, dtype: torch.dtype) -> None:
    case = build(attn_mask=random_mask(torch.float32, (1, 17)), sinks=torch.randn(6))
    mixed = case.but(query=case["query"].to(dtype), value=case["value"].bfloat16())
    with torch.autocast(ops.device, dtype=dtype):
        actual = getattr(ops, op)(**mixed)
    expected = getattr(ops, op)(
        **mixed.but(key=mixed["key"].to(dtype), value=mixed["value"].to(dtype))
    )
    for a, e in zip(
        tree_leaves(actual),
        tree_leaves(expected),
        strict=True,
    ):
        assert same_bits(a, e)


@pytest.mark.parametrize("cache", QUANTISED)
def test_8_bit_cache_stays(ops: Ops, cache: torch.dtype) -> None:
    case = quantised(build(), cache)
    with torch.autocast(ops.device, dtype=torch.bfloat16):
        actual = ops.attention(**case)
    assert same_bits(actual, ops.attention(**case.but(query=case["query"].bfloat16())))


def test_float64_stays() -> None:
    case = build(dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = mqa.attention(**case)
    assert same_bits(actual, mqa.attention(**case))


def test_gradients_come_back_in_the_leaves_dtype(ops: Ops) -> None:
    case = build()
    leaves = [case[name].requires_grad_() for name in ("query", "key", "value")]
    with torch.autocast(ops.device, dtype=torch.bfloat16):
        out = ops.attention(**case)
    assert out.dtype == torch.bfloat16
    for leaf, grad in zip(leaves, torch.autograd.grad(out.sum(), leaves), strict=True):
        assert grad.dtype == torch.float32
        assert grad.shape == leaf.shape


@pytest.mark.parametrize("cache", FLOATS)
def test_append_in_the_dtype_of_the_cache(ops: Ops, cache: torch.dtype) -> None:
    key, value = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8).bfloat16()
    caches = torch.zeros(1, 2, 4, 8, dtype=cache), torch.zeros(1, 2, 4, 8, dtype=cache)
    with torch.autocast(ops.device, dtype=torch.bfloat16):
        ops.kv_append(*caches, key, value, torch.tensor([1]))
    for written, rows in zip(caches, (key, value), strict=True):
        assert same_bits(written[:, :, 1:], rows.to(cache))
        assert not written[:, :, 0].any()


@pytest.mark.parametrize("cache", QUANTISED)
def test_append_quantises(ops: Ops, cache: torch.dtype) -> None:
    key, value = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8).bfloat16()

    def append() -> list[torch.Tensor]:
        written = [torch.zeros(1, 2, 3, 8).to(cache) for _ in range(2)]
        scales = {name: torch.zeros(1, 2, 3) for name in ("key_scale", "value_scale")}
        rows = (key, value) if torch.is_autocast_enabled(ops.device) else (key, value.float())
        ops.kv_append(*written, *rows, torch.tensor([0]), **scales)
        return [*written, *scales.values()]

    with torch.autocast(ops.device, dtype=torch.bfloat16):
        actual = append()
    assert all(same_bits(a, e) for a, e in zip(actual, append(), strict=True))
