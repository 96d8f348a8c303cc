"""Gradients: against finite differences, against autograd through the oracle, and what has none."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from torch import Tensor, float64
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

import mqa
import oracle
from cases import FLOATS, Case, build, quantised, random_mask, same_bits
from devices import Ops
from doors import fake, meta, torch_ops
from mqa.bench.training import peak_bytes
from strategies import attention_cases
from transforms import packed, paged, unpack

MOST_ON_CUDA = 256  # head_dim
DIFFERENTIABLE = ["query", "key", "value", "attn_mask", "sinks"]


def leaves(case: Case) -> dict[str, Tensor]:
    return {
        name: case[name].detach().requires_grad_()
        for name in DIFFERENTIABLE
        if name in case and case[name].dtype in FLOATS
    }


def small(**options: Any) -> Case:
    sizes = {"B": 2, "H_kv": 2, "G": 2, "T": 3, "S": 5, "D": 3, "D_v": 2}
    return build(**(sizes | options), dtype=float64)


def finite(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Finite differences of -inf are NaN."""
    return out, lse.masked_fill(lse == -torch.inf, 0)


GRADCHECK = {
    "plain": lambda: small(),
    "causal": lambda: small(is_causal=True, scale=0.7),
    "rows without keys": lambda: small(is_causal=True, T=6),
    "float mask": lambda: small(attn_mask=random_mask(float64, (2, 4, 3, 5))),
    "broadcast mask": lambda: small(attn_mask=random_mask(float64, (4, 1, 5))),
    "bool mask": lambda: small(attn_mask=random_mask(torch.bool, (3, 5))),
    "windows": lambda: small(window_left=1, window_right=0),
    "softcap": lambda: small(softcap=0.8),
    "softcap and mask": lambda: small(softcap=0.8, attn_mask=random_mask(float64, (3, 5))),
    "alibi": lambda: small(alibi_slopes=torch.rand(4, dtype=float64)),
    "alibi per batch": lambda: small(alibi_slopes=torch.rand(2, 4, dtype=float64)),
    "sinks": lambda: small(sinks=torch.randn(4, dtype=float64)),
    "sinks alone": lambda: small(sinks=torch.randn(4, dtype=float64), seq_lens=[0, 2]),
    "seq_lens": lambda: small(seq_lens=[0, 4], is_causal=True),
    "paged": lambda: paged(small(seq_lens=[5, 3]), 2),
    "multi-query": lambda: small(H_kv=1, G=4),
    "multi-head": lambda: small(H_kv=4, G=1),
}


@pytest.mark.parametrize("feature", GRADCHECK)
def test_finite_differences(feature: str) -> None:
    case = GRADCHECK[feature]()
    inputs = leaves(case)

    def function(*values: Tensor) -> tuple[Tensor, Tensor]:
        return finite(*mqa.attention_lse(**case.but(**dict(zip(inputs, values, strict=True)))))

    assert torch.autograd.gradcheck(function, tuple(inputs.values()))


@given(attention_cases())
def test_any_call_against_the_oracle(ops: Ops, case: Case) -> None:
    """The weights are recomputed as exp(score - lse), so their error grows with lse."""
    widths = (case["query"].size(-1), case["value"].size(-1))
    assume(ops.device == "cpu" or max(widths) <= MOST_ON_CUDA)
    dtype = case["query"].dtype
    out, lse = oracle.attention(**case)
    seen = lse > -torch.inf
    magnitude = 1 + lse[seen].abs().max().item() if seen.any() else 1
    random = torch.randn(out.shape) / out.size(-1) ** 0.5, torch.randn(lse.shape) * seen
    grads = [grad.to(dtype) for grad in random]

    def gradients(inputs: dict[str, Tensor], results: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        given = [grad.to(x.dtype) for grad, x in zip(grads, results, strict=True)]
        return torch.autograd.grad(results, list(inputs.values()), given)

    actual_inputs, plain_inputs = leaves(case), leaves(case)
    exact_inputs = leaves(case.but(**{name: x.double() for name, x in actual_inputs.items()}))
    actual = gradients(actual_inputs, ops.attention_lse(**case.but(**actual_inputs)))
    exact = gradients(exact_inputs, oracle.attention(**case.but(**exact_inputs)))
    plain = gradients(plain_inputs, oracle.attention(**case.but(**plain_inputs), dtype=dtype))
    for a, e, p in zip(actual, exact, plain, strict=True):
        oracle.assert_as_accurate_as_torch(a, e, p, magnitude)


TRAINING = {
    "MQA": {"H_kv": 1, "G": 16},
    "GQA": {"H_kv": 2, "G": 3},
    "MHA": {"H_kv": 4, "G": 1},
}


def train(attend: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(attend(*leaves), leaves, grad.to(leaves[0].dtype))


@pytest.mark.parametrize("heads", TRAINING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_as_accurate_as_the_backward_of_scaled_dot_product_attention(
    ops: Ops, dtype: torch.dtype, heads: str
) -> None:
    case = build(**{"B": 2, "T": 130, "S": 130, "D": 64} | TRAINING[heads], dtype=dtype)
    inputs = [case[name] for name in ("query", "key", "value")]
    grad = torch.randn(inputs[0].shape, dtype=float64).to(dtype)

    def sdpa(*x: Tensor) -> Tensor:
        return scaled_dot_product_attention(*x, is_causal=True, enable_gqa=True)

    actual = train(partial(ops.attention, is_causal=True), inputs, grad)
    exact = train(sdpa, [x.double() for x in inputs], grad)
    for a, e, theirs in zip(actual, exact, train(sdpa, inputs, grad), strict=True):
        oracle.assert_as_accurate_as_torch(a, e, theirs)


def test_the_same_bits_in_every_run_and_batch(ops: Ops) -> None:
    """With one thread and with several."""
    case = build(B=3, H_kv=1, G=8, T=150, S=150, D=64, dtype=torch.bfloat16)
    inputs = [case[name] for name in ("query", "key", "value")]
    grad = torch.randn(inputs[0].shape)
    attend = partial(ops.attention, is_causal=True)
    expected = train(attend, inputs, grad)
    threads = torch.get_num_threads()
    for count in (1, 2, threads):
        torch.set_num_threads(count)
        for a, e in zip(train(attend, inputs, grad), expected, strict=True):
            assert same_bits(a, e)
    torch.set_num_threads(threads)
    for a, e in zip(train(attend, [x[1:2] for x in inputs], grad[1:2]), expected, strict=True):
        assert same_bits(a, e[1:2])


def test_no_matrix_of_queries_and_keys_is_kept() -> None:
    query, key = torch.randn(1, 4, 2048, 64), torch.randn(1, 1, 2048, 64)

    def step(_: int) -> tuple[Tensor, ...]:
        return train(partial(mqa.attention, is_causal=True), [query, key, key], query)

    assert peak_bytes(step) < 8 * query.nbytes  # the matrix would take 32 times as much


@pytest.mark.parametrize("hidden", ["by a mask", "by being later"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_hidden_keys_leave_no_trace(ops: Ops, dtype: torch.dtype, bad: float, hidden: str) -> None:
    case = build(T=5, S=5, dtype=dtype)
    grad = torch.randn(case["query"].shape)
    seen = torch.arange(5) != 2
    rows = slice(0, 5) if hidden == "by a mask" else slice(0, 2)
    options = {"attn_mask": seen} if hidden == "by a mask" else {"is_causal": True}

    def gradients(filler: float) -> tuple[Tensor, ...]:
        inputs = [case["query"], *(case[name].clone() for name in ("key", "value"))]
        for x in inputs[1:]:
            x[:, :, 2] = filler
        return train(partial(ops.attention, **options), inputs, grad)

    actual, expected = gradients(bad), gradients(0.0)
    assert same_bits(actual[0][:, :, rows], expected[0][:, :, rows])
    if hidden == "by a mask":
        for a, e in zip(actual[1:], expected[1:], strict=True):
            assert same_bits(a, e)
            assert not a[:, :, 2].any()


def test_caches_without_query_heads_get_zeros() -> None:
    query = torch.zeros(1, 0, 3, 8, requires_grad=True)
    key, value = torch.randn(2, 1, 2, 4, 8).requires_grad_()
    torch.use_deterministic_algorithms(True)  # which fills new memory with NaN
    try:
        grads = torch.autograd.grad(mqa.attention(query, key, value).sum(), (key, value))
    finally:
        torch.use_deterministic_algorithms(False)
    for grad in grads:
        assert torch.equal(grad, torch.zeros(1, 2, 4, 8))


WRONG_INPUTS = {
    "grad_out": (
        {"grad_out": torch.zeros(2, 6, 1, 15)},
        "expected grad_out.size(3) == 16 (as the results of attention), got 15",
    ),
    "out": (
        {"out": torch.zeros(2, 6, 1, 16, dtype=float64)},
        "expected out's dtype to be float32, got float64",
    ),
    "lse": (
        {"lse": torch.zeros(2, 6)},
        "expected lse.dim() == 3 ([B, H_q, T]), got 2",
    ),
    "grad_lse": (
        {"grad_lse": torch.zeros(2, 6, 2)},
        "expected grad_lse.size(2) == 1 (as the results of attention), got 2",
    ),
    "packed keys": (
        {"key": torch.zeros(2, 2, 2, 16, 16)},
        "expected key.dim() == 4 ([B, H_kv, S, D]), got 5",
    ),
    "no mask": (
        {"output_mask": [True, True, True, True, False]},
        "expected no gradient of attn_mask to be wanted where it is missing or holds no floats, "
        "got output_mask[3] == True",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_INPUTS)
@pytest.mark.parametrize("door", [torch_ops, meta, fake])
def test_wrong_inputs_of_the_backward(door: Any, wrong: str) -> None:
    case = build(B=2, T=1, D=16)
    out, lse = mqa.attention_lse(**case)
    changes, message = WRONG_INPUTS[wrong]
    tensors = ("attn_mask", "seq_lens", "block_table", "alibi_slopes")
    options = dict.fromkeys((*tensors, "sinks", "scale", "key_scale", "value_scale"))
    results = {"grad_out": out, "grad_lse": None, "out": out, "lse": lse}
    masks = {"is_causal": False, "window_left": -1, "window_right": -1, "softcap": 0.0}
    arguments = case | options | results | masks | {"output_mask": [True] * 3 + [False] * 2}
    with pytest.raises(RuntimeError) as raised:
        door("attention_backward", arguments | changes)
    assert str(raised.value).splitlines()[0] == f"mqa::attention_backward: {message}"


def test_packed_keys_have_the_gradient_of_keys_in_order(ops: Ops) -> None:
    case = build(T=3, S=32, seq_lens=[32, 5], is_causal=True)
    packed_case = packed(case)
    grads = []
    for c in (case, packed_case):
        inputs = {name: c[name].requires_grad_() for name in ("query", "key", "value")}
        out = ops.attention(**c.but(**inputs))
        grads.append(torch.autograd.grad(out.square().sum(), list(inputs.values())))
    (query, key, value), (same_query, same_key, same_value) = grads
    assert key.abs().sum() > 0
    for x, same in ((query, same_query), (key, unpack(same_key)), (value, same_value)):
        assert torch.equal(same, x)


def test_out_alone_has_the_gradient_of_out() -> None:
    case = small(is_causal=True)
    inputs = leaves(case)
    with_lse, alone = (
        mqa.attention_lse(**case.but(**inputs))[0],
        mqa.attention(**case.but(**inputs)),
    )
    for a, b in zip(
        torch.autograd.grad(alone.sum(), list(inputs.values())),
        torch.autograd.grad(with_lse.sum(), list(inputs.values())),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_only_what_requires_grad_gets_one(name: str) -> None:
    case = small(attn_mask=random_mask(float64, (3, 5)), sinks=torch.randn(4, dtype=float64))
    inputs = leaves(case)
    expected = torch.autograd.grad(mqa.attention(**case.but(**inputs)).sum(), inputs[name])
    out = mqa.attention(**case.but(**{name: inputs[name]}))
    assert torch.equal(torch.autograd.grad(out.sum(), inputs[name])[0], expected[0])


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_no_second_derivative(name: str) -> None:
    case = small(attn_mask=random_mask(float64, (3, 5)), sinks=torch.randn(4, dtype=float64))
    x = leaves(case)[name]
    (grad,) = torch.autograd.grad(
        mqa.attention(**case.but(**{name: x})).sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match=r"^mqa::attention has no second derivative"):
        torch.autograd.grad(grad.sum() + x.sum(), x)


@pytest.mark.parametrize("op", ["attention", "attention_lse"])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_no_forward_mode_derivative(op: str, name: str) -> None:
    case = small(attn_mask=random_mask(float64, (3, 5)), sinks=torch.randn(4, dtype=float64))

    def function(x: Tensor) -> Any:
        return getattr(mqa, op)(**case.but(**{name: x}))

    with pytest.raises(NotImplementedError, match=f"^mqa::{op} has no forward-mode derivative"):
        torch.func.jvp(function, (case[name],), (torch.ones_like(case[name]),))


@pytest.mark.parametrize(
    ("op", "function"),
    [
        ("merge", lambda x, lse: mqa.merge([x, x.detach()], [lse, lse])),
        ("merge", lambda x, lse: mqa.merge([torch.zeros(1, 1, 1, 2)], [x[..., 0]])),
        ("kv_append", lambda x, lse: mqa.kv_append(lse[None], lse[None], x, x, torch.tensor([0]))),
    ],
)
def test_no_forward_mode_derivative_of_the_others(op: str, function: Any) -> None:
    x, lse = torch.randn(1, 1, 1, 2), torch.randn(1, 1, 1)
    with pytest.raises(NotImplementedError, match=f"^mqa::{op} has no forward-mode derivative"):
        torch.func.jvp(lambda x: function(x, lse), (x,), (x,))


@pytest.mark.parametrize("name", ["alibi_slopes", "key_scale", "value_scale"])
def test_no_gradient_of(name: str) -> None:
    case = build(alibi_slopes=torch.rand(6), key_scale=torch.rand(2), value_scale=torch.rand(2))
    case = case.but(key=case["key"].to(torch.int8), value=case["value"].to(torch.int8))
    case[name].requires_grad_()
    with pytest.raises(NotImplementedError) as raised:
        mqa.attention(**case)
    assert str(raised.value).splitlines()[0] == f"mqa::attention: {name} has no gradient: detach it"
    with torch.no_grad():
        mqa.attention(**case)


@pytest.mark.parametrize("name", ["key", "value"])
def test_no_gradient_of_a_float8_cache(name: str) -> None:
    case = quantised(build(), torch.float8_e4m3fn)
    case[name].requires_grad_()
    with pytest.raises(NotImplementedError) as raised:
        mqa.attention_lse(**case)
    expected = f"mqa::attention_lse: {name} has no gradient: detach it"
    assert str(raised.value).splitlines()[0] == expected


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_recomputes_the_same_gradients(ops: Ops, use_reentrant: bool) -> None:
    case = build(T=3, is_causal=True, sinks=torch.randn(6))
    inputs = leaves(case)

    def attend(*values: Tensor) -> Tensor:
        return ops.attention(**case.but(**dict(zip(inputs, values, strict=True))))

    expected = torch.autograd.grad(attend(*inputs.values()).square().sum(), list(inputs.values()))
    out = checkpoint(attend, *inputs.values(), use_reentrant=use_reentrant)
    out.square().sum().backward()
    for x, e in zip(inputs.values(), expected, strict=True):
        assert torch.equal(x.grad, e)


APPEND = {
    "key_cache": (1, 1, 4, 2),
    "value_cache": (1, 1, 4, 2),
    "key": (1, 1, 1, 2),
    "value": (1, 1, 1, 2),
}


@pytest.mark.parametrize("name", APPEND)
def test_append_refuses_what_requires_grad(name: str) -> None:
    arguments = {argument: torch.zeros(shape) for argument, shape in APPEND.items()}
    arguments["key"] += 1
    arguments[name].requires_grad_()
    with pytest.raises(RuntimeError) as raised:
        mqa.kv_append(**arguments, positions=torch.tensor([0]))
    assert str(raised.value).splitlines()[0] == (
        f"mqa::kv_append has no gradient, but {name} requires one: "
        "call it under torch.no_grad() or detach it"
    )
    assert not arguments["key_cache"].any()
    with torch.no_grad():
        mqa.kv_append(**arguments, positions=torch.tensor([0]))
    assert arguments["key_cache"].any()


@pytest.mark.parametrize("written", ["key_cache", "value_cache"])
def test_backward_notices_a_later_append(written: str) -> None:
    query = torch.randn(1, 1, 1, 2, requires_grad=True)
    key, value, other = (torch.randn(1, 1, 4, 2) for _ in range(3))
    out = mqa.attention(query, key, value)
    caches = (key, other) if written == "key_cache" else (other, value)
    mqa.kv_append(*caches, torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2), torch.tensor([0]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_inference_mode() -> None:
    with torch.inference_mode():
        key, value = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
        mqa.kv_append(key, value, torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), torch.tensor([0]))
        assert torch.equal(
            mqa.attention(torch.ones(1, 1, 1, 2), key, value), torch.ones(1, 1, 1, 2)
        )
