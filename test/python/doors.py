"""The ways to call an op: every door takes the op's name and its arguments by name."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import mqa

Arguments = dict[str, Any]


def wrapper(op: str, arguments: Arguments) -> Any:
    return getattr(mqa, op)(**arguments)


def torch_ops(op: str, arguments: Arguments) -> Any:
    return getattr(torch.ops.mqa, op)(**arguments)


def script(op: str, arguments: Arguments) -> Any:
    return scripted(op)(**arguments)


def meta(op: str, arguments: Arguments) -> Any:
    return torch_ops(op, map_tensors(lambda x: x.to("meta"), arguments))


def fake(op: str, arguments: Arguments) -> Any:
    with FakeTensorMode() as mode:
        return torch_ops(op, map_tensors(mode.from_tensor, arguments))


def cuda_key(op: str, arguments: Arguments) -> Any:
    """What is registered for CUDA, with tensors on the CPU: no GPU is needed for its checks."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    return getattr(torch.ops.mqa, op).default.redispatch(keys, **arguments)


def map_tensors(function: Callable[[Tensor], Tensor], arguments: Arguments) -> Arguments:
    return torch.utils._pytree.tree_map_only(Tensor, function, dict(arguments))


@cache
def scripted(op: str) -> Callable[..., Any]:
    """A TorchScript function with the op's own parameters, made from its schema."""
    parameters, passed = [], []
    for a in getattr(torch.ops.mqa, op).default._schema.arguments:
        default = f" = {a.default_value!r}" if a.has_default_value() else ""
        parameters.append(f"{a.name}: {a.type.annotation_str}{default}")
        passed.append(f"{a.name}={a.name}" if a.kwarg_only else a.name)
    source = (
        f"def {op}({', '.join(parameters)}):\n  return torch.ops.mqa.{op}({', '.join(passed)})\n"
    )
    return getattr(torch.jit.CompilationUnit(source), op)
