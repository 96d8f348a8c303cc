"""vLLM's CPU attention, without vLLM's Python code: only its compiled operators are loaded."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mqa.bench.inputs import Inputs, copy_tensor
from mqa.bench.peers.contender import Contender, refuse_quantised

PAGE_SIZE = 128
MOST_SPLIT_GROUP = 16  # its split over keys refuses larger ones


def prepare(inputs: Inputs) -> Contender:
    """The operator on paged caches of its own, packed by its own append."""
    refuse_quantised(inputs)
    ops = _ops()
    case = inputs.case
    isa = "amx" if case.dtype == "bfloat16" and torch.cpu._is_amx_tile_supported() else "vec"

    def tokens_first(tensor: Tensor) -> Tensor:  # [B, H, T, D] to [B * T, H, D]
        return tensor.transpose(1, 2).flatten(0, 1).contiguous()

    query = tokens_first(inputs.query)
    pages = -(-case.context // PAGE_SIZE)
    table = torch.arange(case.batch * pages, dtype=torch.int32).view(case.batch, pages)
    slots = torch.arange(case.batch)[:, None] * pages * PAGE_SIZE + torch.arange(case.context)
    first = inputs.caches[0]
    pool = (case.batch * pages, 1, PAGE_SIZE, case.head_dim)
    packed_keys, packed_values = torch.zeros((2, *pool), dtype=query.dtype)
    ops.cpu_attn_reshape_and_cache(
        tokens_first(first.key),
        tokens_first(first.value),
        packed_keys,
        packed_values,
        slots.flatten(),
        isa,
    )
    keys = copy_tensor(packed_keys, len(inputs.caches))
    values = copy_tensor(packed_values, len(inputs.caches))

    out = torch.empty_like(query)
    starts = torch.arange(case.batch + 1, dtype=torch.int32) * case.tokens
    lengths = torch.full((case.batch,), case.context, dtype=torch.int32)
    scale = case.head_dim**-0.5
    splits = not case.is_causal and case.group <= MOST_SPLIT_GROUP
    no_window, no_softcap = -1, 0.0
    plan = ops.get_scheduler_metadata(
        case.batch,
        case.group,
        1,
        case.head_dim,
        lengths,
        query.dtype,
        starts,
        True,
        no_window,
        isa,
        splits,
        None,
        "auto",
    )

    def run(i: int) -> Tensor:
        ops.cpu_attention_with_kv_cache(
            query,
            keys[i],
            values[i],
            out,
            starts,
            lengths,
            scale,
            True,
            None,
            no_window,
            table,
            no_softcap,
            plan,
            None,
            None,
        )
        return out

    def output(result: Tensor) -> Tensor:
        return result.unflatten(0, (case.batch, case.tokens)).transpose(1, 2).clone()

    return Contender(run, output)


@cache
def _ops() -> Any:
    package = importlib.util.find_spec("vllm")
    if package is None or not package.submodule_search_locations:
        raise ImportError("No module named 'vllm'")
    torch.ops.load_library(str(Path(package.submodule_search_locations[0]) / "_C.abi3.so"))
    return torch.ops._C
