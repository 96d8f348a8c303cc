"""merge: results over parts of the keys, put together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mqa
import oracle
from cases import FLOATS, build
from devices import Ops


def random_parts(
    parts: int, shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[list[Tensor], ...]:
    """Outs and lses, every fourth row without keys."""
    lse_dtype = torch.promote_types(dtype, torch.float32)
    lses = [torch.randn(shape[:-1], dtype=lse_dtype) * 5 for _ in range(parts)]
    lses = [lse.masked_fill(torch.rand(shape[:-1]) < 0.25, -torch.inf) for lse in lses]
    outs = [torch.randn(shape).masked_fill((lse == -torch.inf).unsqueeze(-1), 0) for lse in lses]
    return [out.to(dtype) for out in outs], lses


@given(
    st.integers(0, 2**16),
    st.sampled_from(FLOATS),
    st.sampled_from([1, 2, 3, 17, 300]),
    st.tuples(*[st.integers(0, 4)] * 3, st.sampled_from([0, 1, 7, 64])),
    st.booleans(),
)
def test_any_parts(
    ops: Ops, seed: int, dtype: torch.dtype, parts: int, shape: tuple[int, ...], transposed: bool
) -> None:
    torch.manual_seed(seed)
    outs, lses = random_parts(parts, shape, dtype)
    if transposed:
        outs = [out.transpose(1, 2).contiguous().transpose(1, 2) for out in outs]
    out, lse = ops.merge(outs, lses)
    assert out.dtype == dtype
    assert lse.dtype == lses[0].dtype
    exact, plain = oracle.merge(outs, lses), oracle.merge(outs, lses, dtype=dtype)
    oracle.assert_as_accurate_as_torch(out, exact[0], plain[0])
    oracle.assert_as_accurate_as_torch(lse, exact[1], oracle.merge(outs, lses, dtype=lse.dtype)[1])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_is_attention_over_the_concatenated_keys(
    ops: Ops, dtype: torch.dtype, tolerance: float
) -> None:
    whole = build(T=3, S=200, dtype=dtype, seq_lens=[200, 150])
    parts = []
    for begin, end in [(0, 64), (64, 65), (65, 65), (65, 170), (170, 200)]:
        keys, values = (whole[name][:, :, begin:end] for name in ("key", "value"))
        lens = (whole["seq_lens"] - begin).clamp(0, end - begin)
        parts.append(ops.attention_lse(whole["query"], keys, values, seq_lens=lens))
    outs, lses = zip(*parts, strict=True)
    merged = ops.merge(list(outs), list(lses))
    for actual, expected in zip(merged, ops.attention_lse(**whole), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * 10)


def test_a_part_without_keys_is_neutral(ops: Ops) -> None:
    (out, *_), (lse, *_) = random_parts(1, (2, 3, 4, 8), torch.float32)
    nothing = torch.full_like(out, torch.nan), torch.full_like(lse, -torch.inf)
    for parts in ([(out, lse), nothing], [nothing, (out, lse)]):
        merged = ops.merge([part[0] for part in parts], [part[1] for part in parts])
        assert torch.equal(merged[0], out)
        assert torch.equal(merged[1], lse)


def test_does_not_depend_on_the_batch(ops: Ops) -> None:
    outs, lses = random_parts(5, (3, 4, 2, 24), torch.bfloat16)
    out, lse = ops.merge(outs, lses)
    for b in range(3):
        alone = ops.merge([x[b : b + 1] for x in outs], [x[b : b + 1] for x in lses])
        assert torch.equal(alone[0], out[b : b + 1])
        assert torch.equal(alone[1], lse[b : b + 1])


def test_gradients() -> None:
    """Also through rows that one part, or no part, has keys for."""
    outs, lses = random_parts(3, (2, 2, 2, 3), torch.float64)
    for lse in lses:
        lse[0, 0, 0] = -torch.inf

    def finite(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = mqa.merge(list(tensors[:3]), list(tensors[3:]))
        return out, lse.masked_fill(lse == -torch.inf, 0)

    leaves = [x.requires_grad_() for x in outs + lses]
    assert torch.autograd.gradcheck(finite, leaves)
