"""The table "Which door works with what" of README.md, cell by cell.

"yes" means: works, and gives what eager mode gives. "error" means: refused with a sentence.
"""

import io
import re
import subprocess
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

import mqa
from bpe import train
from decoders import QUICK_COMPILE, tiny_decoder
from programs import BUILD_TREE, ROOT, generate_json


class Attention(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.ops.mqa.attention(query, key, value, is_causal=True)


class AttentionLse(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.mqa.attention_lse(query, key, value, is_causal=True)


class Merge(nn.Module):
    def forward(self, out: Tensor, other: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.mqa.merge([out, other], [lse, lse + 1])


class Append(nn.Module):
    def forward(
        self, keys: Tensor, values: Tensor, key: Tensor, value: Tensor, positions: Tensor
    ) -> Tensor:
        torch.ops.mqa.kv_append(keys, values, key, value, positions)
        return positions + key.size(2)


class Backward(nn.Module):
    def forward(
        self, grad: Tensor, out: Tensor, lse: Tensor, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        grads = torch.ops.mqa.attention_backward(
            grad,
            None,
            out,
            lse,
            query,
            key,
            value,
            None,
            is_causal=True,
            scale=None,
            seq_lens=None,
            block_table=None,
            window_left=-1,
            window_right=-1,
            softcap=0.0,
            alibi_slopes=None,
            sinks=None,
            key_scale=None,
            value_scale=None,
            output_mask=[True, True, True, False, False],
        )
        return grads[0], grads[1], grads[2]


class EightBit(nn.Module):
    def forward(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        key_scale: Tensor,
        value_scale: Tensor,
        key: Tensor,
        positions: Tensor,
    ) -> Tensor:
        torch.ops.mqa.kv_append(
            keys, values, key, key, positions, key_scale=key_scale, value_scale=value_scale
        )
        return torch.ops.mqa.attention(
            query,
            keys,
            values,
            seq_lens=positions + 1,
            key_scale=key_scale,
            value_scale=value_scale,
        )


class Paged(nn.Module):
    def forward(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        key: Tensor,
        positions: Tensor,
        block_table: Tensor,
    ) -> Tensor:
        torch.ops.mqa.kv_append(keys, values, key, key, positions, block_table=block_table)
        return torch.ops.mqa.attention(
            query, keys, values, seq_lens=positions + 1, block_table=block_table
        )


class Decode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = tiny_decoder(num_kv_heads=1, num_layers=1)

    def forward(self, tokens: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return self.decoder.decode(tokens, positions, [keys, values])


@dataclass
class Row:
    """A module, its inputs, and the numbers of those that gradients are for."""

    module: nn.Module
    inputs: tuple[Tensor, ...]
    differentiable: tuple[int, ...] = ()
    scales: tuple[int, ...] = ()  # of 8-bit caches, always float32

    def fresh_inputs(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        def fresh(number: int, x: Tensor) -> Tensor:
            keep = number in self.scales or not x.is_floating_point()
            return x.clone() if keep else x.clone().to(dtype)

        return [fresh(number, x) for number, x in enumerate(self.inputs)]

    def results(self, function: Callable[..., Any]) -> list[Tensor]:
        """What `function` returns and what it leaves in its inputs."""
        inputs = self.fresh_inputs()
        return [*tree_leaves(function(*inputs)), *inputs]


def attention_inputs() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 4, 3, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 6)


def backward_inputs() -> tuple[Tensor, ...]:
    query, key, value = attention_inputs()
    out, lse = mqa.attention_lse(query, key, value, is_causal=True)
    return torch.randn(out.shape), out, lse, query, key, value


def caches(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Zeros: a row of them has the scale 0."""
    return torch.zeros(2, 2, 7, 8, dtype=dtype), torch.zeros(2, 2, 7, 8, dtype=dtype)


def rows() -> dict[str, Row]:
    torch.manual_seed(0)
    query, new, positions = torch.randn(2, 4, 1, 8), torch.randn(2, 2, 1, 8), torch.tensor([3, 0])
    scales = torch.zeros(2, 2, 7), torch.zeros(2, 2, 7)
    table = torch.tensor([[1], [0]], dtype=torch.int32)
    merged = torch.randn(2, 4, 3, 8), torch.randn(2, 4, 3, 8), torch.randn(2, 4, 3)
    token = torch.tensor([5, 7]), positions, *torch.zeros(2, 2, 1, 16, 8).unbind(0)
    return {
        "attention": Row(Attention(), attention_inputs(), (0, 1, 2)),
        "attention_lse": Row(AttentionLse(), attention_inputs(), (0, 1, 2)),
        "merge": Row(Merge(), merged, (0, 1, 2)),
        "kv_append": Row(Append(), (*caches(torch.float32), new, new, positions), (2, 3)),
        "backward of attention": Row(Backward(), backward_inputs(), (0, 3, 4, 5)),
        "8-bit caches": Row(
            EightBit(), (query, *caches(torch.int8), *scales, new, positions), (0,), (3, 4)
        ),
        "paged caches": Row(Paged(), (query, *caches(torch.float32), new, positions, table), (0,)),
        "Decoder": Row(Decode(), token),
    }


# The doors. Each raises if it does not give what eager mode gives.


def eager(row: Row) -> None:
    """Against itself in float64."""
    inputs = row.fresh_inputs(torch.float64)
    exact = [*tree_leaves(deepcopy(row.module).double()(*inputs)), *inputs]
    assert_close(row.results(row.module), exact, check_dtype=False, rtol=1e-4, atol=1e-4)


def autocast(row: Row) -> None:
    def function(*inputs: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return row.module(*inputs)

    actual = row.results(function)
    assert_close(actual, row.results(row.module), check_dtype=False, rtol=0.05, atol=0.05)


def autograd(row: Row) -> None:
    """Against the slope in a random direction."""
    module = deepcopy(row.module).requires_grad_()

    def loss(inputs: list[Tensor]) -> Tensor:
        outputs = tree_leaves(module(*inputs))
        return torch.stack([x.square().sum() for x in outputs if x.is_floating_point()]).sum()

    inputs = row.fresh_inputs()
    for number in row.differentiable:
        inputs[number].requires_grad_()
    loss(inputs).backward()
    slope, ends = torch.zeros(()), [row.fresh_inputs(), row.fresh_inputs()]
    for number in row.differentiable:
        direction = torch.randn(inputs[number].shape)
        slope += (inputs[number].grad * direction).sum()
        for sign, end in zip((1, -1), ends, strict=True):
            end[number] += sign * 1e-2 * direction
    assert_close((loss(ends[0]) - loss(ends[1])) / 2e-2, slope, rtol=0.01, atol=0.01)


def compiled(row: Row) -> None:
    torch.compiler.reset()
    function = torch.compile(row.module, fullgraph=True, backend="aot_eager")
    assert_close(row.results(function), row.results(row.module))


def exported(row: Row) -> None:
    program = torch.export.export(row.module, tuple(row.fresh_inputs()))
    assert_close(row.results(program.module()), row.results(row.module))


def torchscript(row: Row) -> None:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(row.module), file)
    file.seek(0)
    assert_close(row.results(torch.jit.load(file)), row.results(row.module))


def vmap(row: Row) -> None:
    """Over two calls, one of them with other numbers."""
    other = Row(row.module, tuple(x.flip(0) for x in row.inputs))
    stacked = Row(row.module, tuple(map(torch.stack, zip(row.inputs, other.inputs, strict=True))))
    actual = stacked.results(torch.func.vmap(row.module))
    expected = zip(row.results(row.module), other.results(row.module), strict=True)
    assert_close(actual, [torch.stack(pair) for pair in expected])


def without_data(row: Row) -> None:
    """On the device "meta" and as FakeTensors, parameters too: the same sizes, strides, dtypes."""
    with torch.device("meta"):
        shadow = type(row.module)()
    meta = tree_leaves(shadow(*(x.to("meta") for x in row.fresh_inputs())))
    inputs = row.fresh_inputs()
    with FakeTensorMode() as mode:
        fake = tree_leaves(type(row.module)()(*map(mode.from_tensor, inputs)))
    outputs = tree_leaves(row.module(*row.fresh_inputs()))
    for shadows in (meta, fake):
        for x, e in zip(shadows, outputs, strict=True):
            assert (x.shape, x.stride(), x.dtype) == (e.shape, e.stride(), e.dtype)


class All(nn.Module):
    """The modules of all rows side by side: AOTInductor compiles them in one go."""

    def __init__(self, rows: list[Row]) -> None:
        super().__init__()
        self.modules_of_rows = nn.ModuleList(row.module for row in rows)

    def forward(self, inputs: list[list[Tensor]]) -> list[list[Tensor]]:
        pairs = zip(self.modules_of_rows, inputs, strict=True)
        return [tree_leaves(module(*x)) for module, x in pairs]


@torch._inductor.config.patch(QUICK_COMPILE)
@cache
def package() -> Callable[[list[list[Tensor]]], list[list[Tensor]]]:
    """All rows as one AOTInductor file."""
    every = list(rows().values())
    program = torch.export.export(All(every), ([row.fresh_inputs() for row in every],))
    with TemporaryDirectory() as folder:
        path = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/all.pt2")
        return torch._inductor.aoti_load_package(path)


def aotinductor(row: Row) -> None:
    types = [type(other.module) for other in rows().values()]
    inputs = [other.fresh_inputs() for other in rows().values()]
    outputs, number = package()(inputs), types.index(type(row.module))
    assert_close([*outputs[number], *inputs[number]], row.results(row.module))


def cpp(row: Row) -> None:
    """The test of the C++ API that calls it, or the program that runs the decoder."""
    if isinstance(row.module, Decode):
        return generate_in_cpp()
    test = CPP_TESTS[type(row.module)]
    command = [BUILD_TREE / "test" / "mqa_tests", f"--gtest_filter={test}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "[  PASSED  ] 1 test." in done.stdout, done.stdout + done.stderr


CPP_TESTS = {
    Attention: "Api.OptionsByName",
    AttentionLse: "Api.MergesPartsOfTheKeys",
    Merge: "Api.MergesPartsOfTheKeys",
    Append: "Api.AppendsInPlaceAndAttendsToIt",
    Backward: "Api.GradientsFlow",
    EightBit: "Api.PagedEightBitCaches",
    Paged: "Api.PagedEightBitCaches",
}


def generate_in_cpp() -> None:
    tokenizer = train()
    prompt = "The keeper's light"
    model = tiny_decoder(vocab_size=tokenizer.get_vocab_size(), num_kv_heads=1)
    with TemporaryDirectory() as folder:
        mqa.export_torchscript(model, f"{folder}/model.pt", tokenizer.to_str())
        result = generate_json(Path(folder, "model.pt"), prompt=prompt, max_new_tokens=5)
    assert [result["tokens"]] == mqa.generate(model, [tokenizer.encode(prompt).ids], 5)


DOORS = {
    "eager": eager,
    "autocast": autocast,
    "autograd": autograd,
    "`torch.compile`": compiled,
    "`torch.export`": exported,
    "AOTInductor": aotinductor,
    "TorchScript": torchscript,
    "`vmap`": vmap,
    "meta, FakeTensor": without_data,
    "C++": cpp,
}


def cells() -> list[Any]:
    """`(row, door, claim)` of README's table."""
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## Which door works with what") :].split("\n## ")[0]
    lines = [re.split(r"\s*\|\s*", line)[1:-1] for line in section.splitlines() if line[:1] == "|"]
    (_, *doors), _, *body = lines
    return [
        pytest.param(name.strip("`"), door, claim, id=f"{name.strip('`')}, {door}")
        for name, *claims in body
        for door, claim in zip(doors, claims, strict=True)
    ]


@pytest.mark.parametrize(("name", "door", "claim"), cells())
def test_cell(name: str, door: str, claim: str) -> None:
    row = rows()[name]
    if claim == "yes":
        DOORS[door](row)
        return
    assert claim == "error"
    with pytest.raises(RuntimeError, match=r"^mqa::\w+ has no (gradient|second derivative)"):
        DOORS[door](row)


def test_the_table_is_complete() -> None:
    expected = {(name, door) for name in rows() for door in DOORS}
    assert {cell.values[:2] for cell in cells()} == expected
