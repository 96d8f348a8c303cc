"""The ops on every device of this machine, for tests that build their tensors on the CPU."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from hypothesis import reject
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

import mqa

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


class Ops:
    """`mqa`'s ops on one device: arguments go there from the CPU, results and writes come back."""

    def __init__(self, device: str) -> None:
        self.device = device
        # With up to so many rows (G * T) on a KV head a row has the same bits in every call.
        self.rows_of_same_bits = 64 if device == "cuda" else 2**62

    def attention(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._call(mqa.attention, args, kwargs)

    def attention_lse(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self._call(mqa.attention_lse, args, kwargs)

    def merge(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self._call(mqa.merge, args, kwargs)

    def kv_append(self, *args: Any, **kwargs: Any) -> None:
        self._call(mqa.kv_append, args, kwargs)

    def move(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments with their strides, the gaps between elements, and what they share."""
        if self.device == "cpu":
            return arguments
        if not is_on_cuda_too(arguments):
            reject()
        memories: dict[int, torch.UntypedStorage] = {}

        def move(x: Tensor) -> Tensor:
            if x.requires_grad:
                return x.to(self.device)
            memory = x.untyped_storage()
            if memory._cdata not in memories:
                memories[memory._cdata] = memory.to(device=torch.device(self.device))
            moved = torch.empty(0, dtype=x.dtype, device=self.device)
            return moved.set_(memories[memory._cdata], x.storage_offset(), x.shape, x.stride())

        return tree_map_only(Tensor, move, dict(arguments))

    def _call(self, op: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.device == "cpu":
            return op(*args, **kwargs)
        arguments = dict(zip(signature(op).parameters, args, strict=False)) | kwargs
        moved = self.move(arguments)
        result = op(**moved)
        if op is mqa.kv_append:
            for x, written in zip(tensors(arguments), tensors(moved), strict=True):
                x.untyped_storage().copy_(written.untyped_storage())
        return tree_map_only(Tensor, Tensor.cpu, result)


def tensors(arguments: dict[str, Any]) -> list[Tensor]:
    return [x for x in tree_leaves(arguments) if isinstance(x, Tensor)]


def is_on_cuda_too(arguments: dict[str, Any]) -> bool:
    """Not float64, and not attention with values of more than 512 elements."""
    if any(x.dtype == torch.float64 for x in tensors(arguments)):
        return False
    return "query" not in arguments or arguments["value"].size(-1) <= 512
