"""The ops through every door: eager, TorchScript, compile, export, opcheck, Meta."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim
from torch.library import opcheck

import mqa
from cases import FLOATS, QUANTISED, Case, build, quantised, random_mask, same_bits
from devices import Ops
from doors import fake, meta, script, torch_ops, wrapper
from strategies import attention_cases
from transforms import pack, packed, paged

FIXTURES = Path(__file__).parents[1] / "fixtures"


class Step(torch.nn.Module):
    """Appends new tokens and attends to all so far."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, cache: list[Tensor], positions: Tensor
    ) -> Tensor:
        torch.ops.mqa.kv_append(cache[0], cache[1], key, value, positions)
        return torch.ops.mqa.attention(
            query, cache[0], cache[1], is_causal=True, seq_lens=positions + query.size(2)
        )


def step_arguments(
    B: int = 2, T: int = 1, S: int = 8, first: int = 0, is_packed: bool = False
) -> tuple[Any, ...]:
    case = build(B=B, T=T, S=T)
    cache = [torch.randn(B, 2, S, 16) for _ in range(2)]
    if is_packed:
        cache[0] = pack(cache[0])
    return case["query"], case["key"], case["value"], cache, torch.arange(first, first + B)


def assert_steps_alike(step: Any, sizes: dict[str, int]) -> None:
    """The same result and the same caches as in eager mode."""
    torch.manual_seed(1)
    *inputs, cache, positions = step_arguments(**sizes)
    eager_cache = [x.clone() for x in cache]
    actual, expected = step(*inputs, cache, positions), Step()(*inputs, eager_cache, positions)
    assert torch.equal(actual, expected)
    assert all(same_bits(a, b) for a, b in zip(cache, eager_cache, strict=True))


# Eager, TorchScript, Meta


@settings(max_examples=30)
@given(attention_cases())
def test_every_door_gives_the_same(ops: Ops, case: Case) -> None:
    case = Case(ops.move(case))
    expected = mqa.attention_lse(**case)
    for door in (wrapper, torch_ops, script):
        for a, b in zip(door("attention_lse", case), expected, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(door("attention", case), expected[0])
    shapes = meta("attention_lse", case), fake("attention_lse", case)
    for a, b, e in zip(*shapes, expected, strict=True):
        for x in (a, b):
            assert (x.shape, x.dtype, x.stride()) == (e.shape, e.dtype, e.stride())


@pytest.mark.usefixtures("device")
def test_append_survives_torchscript_optimisation() -> None:
    """It returns nothing, so a pass that takes it for pure drops it."""
    scripted = torch.jit.script(Step().eval())
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    frozen = torch.jit.optimize_for_inference(torch.jit.freeze(loaded))
    for module in (scripted, loaded, frozen):
        for first in range(4):  # the profiling executor optimises after the first runs
            assert_steps_alike(module, {"first": first})
        assert "mqa::kv_append" in str(torch._C._last_executed_optimized_graph())


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.pt")), ids=lambda path: path.name)
def test_saved_module_of_earlier_versions(path: Path) -> None:
    module = torch.jit.load(path)
    for actual, expected in zip(module(), module.expected, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


# compile and export


@pytest.mark.usefixtures("device")
def test_compiled_with_dynamic_sizes_and_window() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    attend = torch.compile(mqa.attention, fullgraph=True, dynamic=True, backend=counter)
    for B, T, S, window in [(5, 4, 17, 8), (7, 9, 30, 10), (4, 11, 12, 3)]:
        case = build(B=B, T=T, S=S, is_causal=True, window_left=window)
        assert torch.equal(attend(**case), mqa.attention(**case))
    assert counter.frame_count == 1


@pytest.mark.usefixtures("device")
def test_compiled_backward() -> None:
    torch._dynamo.reset()
    case = build(attn_mask=random_mask(torch.float32, (1, 17)), sinks=torch.randn(6))
    inputs = [x.requires_grad_() for x in case.tensors().values()]

    def loss(case: dict[str, Any]) -> Tensor:
        out, lse = mqa.attention_lse(**case)
        return out.square().sum() + lse.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected, actual = (torch.autograd.grad(f(dict(case)), inputs) for f in (loss, compiled))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("value_size", [8, 16])
@pytest.mark.usefixtures("device")
def test_compiled_append_to_caches_that_share_memory(value_size: int) -> None:
    """Latent attention: value is the first part of key, or the same."""

    def append(cache: Tensor, new: Tensor, positions: Tensor) -> None:
        mqa.kv_append(cache, cache[..., :value_size], new, new[..., :value_size], positions)

    torch.compiler.reset()
    new, positions = torch.randn(2, 1, 3, 16), torch.tensor([0, 1])
    actual, expected = torch.zeros(2, 2, 1, 4, 16)
    torch.compile(append, fullgraph=True, backend="aot_eager")(actual, new, positions)
    append(expected, new, positions)
    assert torch.equal(actual, expected)
    assert expected.any()


@pytest.mark.usefixtures("device")
def test_export_with_dynamic_shapes() -> None:
    B, T, S = Dim("B", min=2, max=64), Dim("T", min=2, max=64), Dim("S", min=2, max=4096)
    new, cache = {0: B, 2: T}, {0: B, 2: S}
    exported = torch.export.export(
        Step(), step_arguments(T=3), dynamic_shapes=(new, new, new, [cache, cache], {0: B})
    )
    for sizes in ({"T": 3}, {"B": 3, "T": 5, "S": 20, "first": 4}):
        assert_steps_alike(exported.module(), sizes)


def test_export_with_packed_keys() -> None:
    B, groups = Dim("B", min=2, max=64), Dim("groups", min=2, max=256)
    new, keys, values = {0: B}, {0: B, 2: groups}, {0: B, 2: 16 * groups}
    exported = torch.export.export(
        Step(),
        step_arguments(S=48, is_packed=True),
        dynamic_shapes=(new, new, new, [keys, values], {0: B}),
    )
    for sizes in ({"S": 48}, {"B": 3, "S": 80, "first": 4}):
        assert_steps_alike(exported.module(), sizes | {"is_packed": True})


# opcheck

FEATURES = {
    "plain": lambda: build(),
    "causal": lambda: build(T=3, seq_lens=[5, 0], is_causal=True),
    "everything": lambda: build(
        T=3,
        D_v=8,
        attn_mask=random_mask(torch.float32, (6, 3, 17)),
        window_left=4,
        window_right=1,
        softcap=2.0,
        alibi_slopes=torch.rand(2, 6),
        sinks=torch.randn(6),
        scale=0.1,
    ),
    "windows": lambda: build(T=3, window_left=4, window_right=1),
    "softcap": lambda: build(softcap=2.0),
    "alibi": lambda: build(alibi_slopes=torch.rand(6)),
    "sinks": lambda: build(sinks=torch.randn(6)),
    "bool mask": lambda: build(attn_mask=random_mask(torch.bool, (6, 1, 17))),
    "values of another size": lambda: build(D_v=24),
    "other layouts": lambda: permuted(build(T=3, H_kv=1)),
    "paged": lambda: paged(build(seq_lens=[17, 5]), 4),
    "packed keys": lambda: packed(build(T=3, seq_lens=[17, 5])),
    "int8": lambda: quantised(build(), torch.int8),
    "float8, a scale per head": lambda: quantised(build(), torch.float8_e4m3fn, per_head=True),
    "paged int8": lambda: paged(quantised(build(seq_lens=[17, 5]), torch.int8), 4),
    "bfloat16": lambda: build(dtype=torch.bfloat16),
    "empty": lambda: build(B=0, T=0, S=0),
}


def permuted(case: Case) -> Case:
    """Heads behind tokens, every second slot of a longer cache, one value cache for all rows."""
    return case.but(
        query=case["query"].transpose(1, 2).contiguous().transpose(1, 2),
        key=case["key"].repeat_interleave(2, 2)[:, :, ::2],
        value=case["value"][:1].expand_as(case["value"]),
    )


def differentiable(arguments: dict[str, Any]) -> dict[str, Any]:
    """Query, key, value, mask and sinks require grad where they can."""
    for name in ("query", "key", "value", "attn_mask", "sinks"):
        if name in arguments and arguments[name].dtype in FLOATS:
            arguments[name].requires_grad_()
    return arguments


def utilities(cache: torch.dtype) -> tuple[str, ...]:
    """Of opcheck: two compare tensors by arithmetic that float8 lacks."""
    tests = ("test_autograd_registration", "test_faketensor")
    if cache == torch.float8_e4m3fn:
        return tests
    return (*tests, "test_schema", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("op", ["attention", "attention_lse"])
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.usefixtures("device")
def test_opcheck_attention(op: str, feature: str) -> None:
    case = FEATURES[feature]()
    tests = utilities(case["key"].dtype)
    opcheck(getattr(torch.ops.mqa, op).default, (), dict(differentiable(case)), test_utils=tests)


@pytest.mark.usefixtures("device")
def test_opcheck_backward() -> None:
    case = FEATURES["everything"]()
    out, lse = mqa.attention_lse(**case)
    unused = dict.fromkeys(("seq_lens", "block_table", "key_scale", "value_scale"))
    arguments = {"grad_out": out, "grad_lse": lse, "out": out, "lse": lse}
    options = case | unused | {"is_causal": True, "output_mask": [True] * 5}
    opcheck(torch.ops.mqa.attention_backward.default, (), arguments | options)


@pytest.mark.usefixtures("device")
def test_opcheck_merge() -> None:
    parts = [mqa.attention_lse(**build()) for _ in range(3)]
    outs, lses = ([part[i].requires_grad_() for part in parts] for i in (0, 1))
    opcheck(torch.ops.mqa.merge.default, (outs, lses))


@pytest.mark.usefixtures("device")
def test_opcheck_append_in_other_layouts() -> None:
    """Tokens before heads, new rows and caches alike; the caches are part of a larger tensor."""
    caches = torch.zeros(2, 2, 4, 3, 8)[:, :, 1:].transpose(2, 3).unbind(0)
    key, value = torch.randn(2, 2, 2, 3, 8).transpose(2, 3).unbind(0)
    opcheck(torch.ops.mqa.kv_append.default, (*caches, key, value, torch.tensor([0, 1])))


@pytest.mark.parametrize("cache", [torch.float32, *QUANTISED])
@pytest.mark.parametrize("pages", [None, [[2], [0]]])
@pytest.mark.usefixtures("device")
def test_opcheck_append(cache: torch.dtype, pages: list[list[int]] | None) -> None:
    block_table = None if pages is None else torch.tensor(pages, dtype=torch.int32)
    key, value, caches = *torch.randn(2, 2, 3, 2, 8), [torch.zeros(3, 3, 4, 8).to(cache)] * 2
    caches = [x[: 3 if block_table is not None else 2].clone() for x in caches]
    scales = {}
    if cache in QUANTISED:
        scales = {name: torch.zeros(len(caches[0]), 3, 4) for name in ("key_scale", "value_scale")}
    opcheck(
        torch.ops.mqa.kv_append.default,
        (*caches, key, value, torch.tensor([0, 2])),
        {"block_table": block_table, **scales},
        test_utils=utilities(cache),
    )


# The profiler


def test_profiler_shows_ops_and_shapes() -> None:
    case = build(T=3)
    shapes = [list(case[name].shape) for name in ("query", "key", "value")]
    caches = case["key"].clone(), case["value"].clone()
    new = case["key"][:, :, :2]
    case["query"].requires_grad_()
    with torch.profiler.profile(record_shapes=True) as profile:
        mqa.kv_append(*caches, new, new, torch.tensor([0, 1]))
        mqa.attention(**case).sum().backward()
    seen = {event.name: event.input_shapes for event in profile.events()}
    assert seen["mqa::kv_append"][:4] == [*shapes[1:], list(new.shape), list(new.shape)]
    assert seen["mqa::attention"][:3] == shapes
    assert seen["mqa::attention_backward"][4:7] == shapes
