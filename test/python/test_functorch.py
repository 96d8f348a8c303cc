"""torch.func: gradients, vmap, and one inside the other."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.testing import assert_close

import mqa
from cases import build, random_mask, same_bits

NAMES = ("query", "key", "value")


def loss(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    out, lse = mqa.attention_lse(query, key, value, **options)
    return out.square().sum() + lse.sum()


def gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(loss(*leaves), leaves)


@pytest.mark.usefixtures("device")
def test_grad() -> None:
    inputs = [build()[name] for name in NAMES]
    actual = grad(loss, argnums=(0, 1, 2))(*inputs)
    for a, e in zip(actual, gradients(*inputs), strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("in_dims", [(0, None, None), (0, 0, 0), (None, 0, None), (2, None, 4)])
@pytest.mark.usefixtures("device")
def test_vmap(in_dims: tuple[int | None, ...]) -> None:
    """What is not vmapped is shared."""
    inputs, calls = [], [[] for _ in range(3)]
    for name, dim in zip(NAMES, in_dims, strict=True):
        x = build()[name]
        parts = [x] * 3 if dim is None else [x, x.flip(0), 2 * x]
        inputs.append(x if dim is None else torch.stack(parts, dim))
        for call, part in zip(calls, parts, strict=True):
            call.append(part)
    assert_close(
        vmap(mqa.attention, in_dims)(*inputs), torch.stack([mqa.attention(*c) for c in calls])
    )
    out, lse = vmap(mqa.attention_lse, in_dims)(*inputs)
    for i, call in enumerate(calls):
        assert torch.equal(out[i], mqa.attention_lse(*call)[0])
        assert torch.equal(lse[i], mqa.attention_lse(*call)[1])


def test_vmap_of_every_feature() -> None:
    """Optional tensors are vmapped too, or shared."""
    case = build(T=3, seq_lens=[17, 5], alibi_slopes=torch.rand(6), sinks=torch.randn(6))
    masks = torch.stack([random_mask(torch.bool, (3, 17)) for _ in range(3)])
    sinks = torch.randn(3, 6)

    def attend(mask: Tensor, sinks: Tensor) -> Tensor:
        return mqa.attention(**case.but(attn_mask=mask, sinks=sinks))

    for actual, mask, sink in zip(vmap(attend)(masks, sinks), masks, sinks, strict=True):
        assert torch.equal(actual, attend(mask, sink))


NESTED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "vmap of grad": lambda q, kv: vmap(grad(loss), (0, None, None))(q, kv, kv),
    "vmap of grad of the cache": lambda q, kv: vmap(grad(loss, 1), (0, None, None))(q, kv, kv),
    "grad of vmap": lambda q, kv: grad(lambda q: vmap(loss, (0, None, None))(q, kv, kv).sum())(q),
    "vmap of vmap": lambda q, kv: vmap(vmap(mqa.attention, (None, 0, 0)), (0, None, None))(
        q, torch.stack([kv, 2 * kv]), torch.stack([kv, -kv])
    ),
    "jacobian": lambda q, kv: torch.func.jacrev(lambda q: mqa.attention(q, kv, kv))(q[0, :1, :2]),
}
EXPECTED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "vmap of grad": lambda q, kv: torch.stack([gradients(x, kv, kv)[0] for x in q]),
    "vmap of grad of the cache": lambda q, kv: torch.stack([gradients(x, kv, kv)[1] for x in q]),
    "grad of vmap": lambda q, kv: torch.stack([gradients(x, kv, kv)[0] for x in q]),
    "vmap of vmap": lambda q, kv: torch.stack(
        [torch.stack([mqa.attention(x, kv, kv), mqa.attention(x, 2 * kv, -kv)]) for x in q]
    ),
    "jacobian": lambda q, kv: torch.autograd.functional.jacobian(
        lambda q: mqa.attention(q, kv, kv), q[0, :1, :2]
    ),
}


@pytest.mark.parametrize("name", NESTED)
def test_nested(name: str) -> None:
    query, cache = torch.randn(3, 1, 4, 2, 8), torch.randn(1, 2, 5, 8)
    assert_close(NESTED[name](query, cache), EXPECTED[name](query, cache))


def test_vmap_of_append_writes_into_the_vmapped_caches() -> None:
    caches, new = torch.zeros(2, 3, 2, 1, 4, 8), torch.randn(3, 2, 1, 2, 8)
    positions = torch.tensor([[0, 1], [2, 0], [1, 1]])
    expected = caches.clone()
    for b in range(3):
        mqa.kv_append(expected[0, b], expected[1, b], new[b], -new[b], positions[b])
    vmap(lambda k, v, n, p: mqa.kv_append(k, v, n, -n, p) or p)(*caches, new, positions)
    assert same_bits(caches, expected)
    assert caches.any()


@pytest.mark.parametrize("shared", ["key_cache", "value_cache"])
def test_vmap_of_append_refuses_one_cache_for_all(shared: str) -> None:
    x, position = torch.ones(3, 1, 1, 2, 4), torch.zeros(3, 1).int()
    caches = {"key_cache": torch.zeros(3, 1, 1, 2, 4), "value_cache": torch.zeros(3, 1, 1, 2, 4)}
    in_dims = tuple(None if name == shared else 0 for name in caches)
    caches[shared] = caches[shared][0]
    with pytest.raises(RuntimeError) as raised:
        vmap(mqa.kv_append, (*in_dims, 0, 0, 0))(*caches.values(), x, x, position)
    assert str(raised.value).splitlines()[0] == (
        f"mqa::kv_append: expected {shared} to be vmapped as well (it is written in place), "
        "got one for all"
    )
    assert not any(cache.any() for cache in caches.values())


def test_vmap_over_nothing_is_refused() -> None:
    x = torch.zeros(0, 1, 1, 2, 4)
    with pytest.raises(RuntimeError) as raised:
        vmap(mqa.attention)(x, x, x)
    expected = "mqa::attention: expected a vmapped dimension of size >= 1, got 0"
    assert str(raised.value).splitlines()[0] == expected
