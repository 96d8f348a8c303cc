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


class Block(torch.nn.Module):
    """Projections and attention of one head over another: what a training step needs."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = torch.nn.ModuleList(torch.nn.Linear(16, n) for n in (32, 16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (p(x).unflatten(2, (-1, 16)).transpose(1, 2) for p in self.projections)
        out, lse = mqa.attention_lse(query, key, value.float(), is_causal=True)
        return out.float().square().mean() + lse.mean()


def gradients(block: Block, low: bool, compiled: bool = False) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    x = torch.randn(2, 5, 16)
    compute = torch.compile(block, fullgraph=True, backend="aot_eager") if compiled else block
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=low):
        loss = compute(x)
    return torch.autograd.grad(loss, list(block.parameters()))


@pytest.mark.usefixtures("device")
def test_training_step() -> None:
    """In bfloat16 as in float32, but for rounding; compiled, with autocast outside, as eagerly."""
    torch.compiler.reset()
    block = Block()
    exact, eager = (gradients(block, low) for low in (False, True))
    compiled = gradients(block, low=True, compiled=True)
    for a, b, e in zip(eager, compiled, exact, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, e, rtol=0.05, atol=0.01)
        assert not torch.equal(a, e)
        torch.testing.assert_close(b, a, rtol=1e-2, atol=1e-3)
