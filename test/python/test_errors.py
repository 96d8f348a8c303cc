"""Every precondition of every op, in one table, through every door.

An error names the op, the argument, what was expected and what was got, and is raised before
anything is written. Run as a program it prints what CUDA says of tensors' contents, as JSON.
"""

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, bfloat16, float8_e4m3fn, float16, float64, int8, int32, int64, nan, zeros
from torch.utils._pytree import tree_leaves

from cases import same_bits
from doors import Arguments, cuda_key, fake, map_tensors, meta, script, torch_ops, wrapper

FLOATS = "float32, float64, bfloat16 or float16"
CUDA_FLOATS = "float32, bfloat16 or float16"


def backward_arguments() -> Arguments:
    arguments = attention_arguments()
    out, lse = zeros(*arguments["query"].shape[:3], arguments["value"].size(-1)), zeros(2, 4, 3)
    parameters = torch.ops.mqa.attention_backward.default._schema.arguments
    return {
        **dict.fromkeys(argument.name for argument in parameters),
        **arguments,
        **{"grad_out": out, "out": out, "lse": lse, "output_mask": [True] * 3 + [False] * 2},
        **{"is_causal": False, "window_left": -1, "window_right": -1, "softcap": 0.0},
    }


def attention_arguments() -> Arguments:
    """B = 2, H_q = 4, H_kv = 2, T = 3, S = 7, D = 8, D_v = 6."""
    return {"query": zeros(2, 4, 3, 8), "key": zeros(2, 2, 7, 8), "value": zeros(2, 2, 7, 6)}


def merge_arguments() -> Arguments:
    return {"outs": [zeros(2, 4, 3, 8)] * 2, "lses": [zeros(2, 4, 3)] * 2}


def append_arguments() -> Arguments:
    """B = 2, H_kv = 2, T = 3, S = 7, D = 8, D_v = 6."""
    return {
        "key_cache": zeros(2, 2, 7, 8),
        "value_cache": zeros(2, 2, 7, 6),
        "key": zeros(2, 2, 3, 8),
        "value": zeros(2, 2, 3, 6),
        "positions": torch.tensor([0, 4]),
    }


def table(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=int32)


# Valid variants, on which a row of the tables changes one thing more.
PAGED = {"key": zeros(6, 2, 4, 8), "value": zeros(6, 2, 4, 6), "block_table": table([0, 1], [2, 3])}
PAGED_CACHE = {"key_cache": PAGED["key"], "value_cache": PAGED["value"]}
PAGED_APPEND = {**PAGED_CACHE, "block_table": PAGED["block_table"]}
SCALES = {"key_scale": zeros(2, 2, 7), "value_scale": torch.ones(2)}
INT8 = {"key": zeros(2, 2, 7, 8).to(int8), "value": zeros(2, 2, 7, 6).to(int8), **SCALES}
FLOAT8_CACHE = {
    "key_cache": zeros(2, 2, 7, 8).to(float8_e4m3fn),
    "value_cache": zeros(2, 2, 7, 6).to(float8_e4m3fn),
    **SCALES,
}
PAGED_INT8 = {
    "key": PAGED["key"].to(int8),
    "value": PAGED["value"].to(int8),
    "block_table": table([0], [1]),
}
PAGED_SCALES = {"key_scale": zeros(6, 2, 4), "value_scale": zeros(6, 2, 4)}

Row = tuple[Arguments, type[Exception], str]

ATTENTION: list[Row] = [
    # dimensions
    ({"query": zeros(4, 3, 8)}, RuntimeError, "expected query.dim() == 4 ([B, H_q, T, D]), got 3"),
    ({"key": zeros(2, 7, 8)}, RuntimeError, "expected key.dim() == 4 ([B, H_kv, S, D]), got 3"),
    ({"value": zeros(7, 8)}, RuntimeError, "expected value.dim() == 4 ([B, H_kv, S, D_v]), got 2"),
    (
        {**PAGED, "key": zeros(6, 4, 8)},
        RuntimeError,
        "expected key.dim() == 4 ([num_pages, H_kv, page_size, D]), got 3",
    ),
    (
        {**PAGED, "value": zeros(6, 4, 8)},
        RuntimeError,
        "expected value.dim() == 4 ([num_pages, H_kv, page_size, D_v]), got 3",
    ),
    # dtypes
    (
        {"query": zeros(2, 4, 3, 8, dtype=int64)},
        RuntimeError,
        f"expected query's dtype to be {FLOATS}, got int64",
    ),
    (
        {"key": zeros(2, 2, 7, 8, dtype=float64)},
        RuntimeError,
        "expected key's dtype to be float32 (query's dtype), int8 or float8_e4m3fn, got float64",
    ),
    (
        {"value": zeros(2, 2, 7, 6, dtype=bfloat16)},
        RuntimeError,
        "expected value's dtype to be float32 (key's dtype), got bfloat16",
    ),
    # sizes
    (
        {"query": zeros(2, 4, 3, 0), "key": zeros(2, 2, 7, 0)},
        RuntimeError,
        "expected query.size(-1) >= 1 (head_dim), got 0",
    ),
    (
        {"key": zeros(2, 2, 7, 4)},
        RuntimeError,
        "expected key.size(-1) == 8 (query's head_dim), got 4",
    ),
    ({"key": zeros(1, 2, 7, 8)}, RuntimeError, "expected key.size(0) == 2 (query's batch), got 1"),
    (
        {"value": zeros(1, 2, 7, 6)},
        RuntimeError,
        "expected value.size(0) == 2 (key's batch), got 1",
    ),
    (
        {"value": zeros(2, 1, 7, 6)},
        RuntimeError,
        "expected value.size(1) == 2 (key's num_kv_heads), got 1",
    ),
    (
        {"value": zeros(2, 2, 8, 6)},
        RuntimeError,
        "expected value.size(2) == 7 (key's slots), got 8",
    ),
    (
        {"key": zeros(2, 2, 1, 8, 8)},
        RuntimeError,
        "expected key.size(4) == 16 (the slots of packed keys that lie side by side), got 8",
    ),
    (
        {"key": zeros(2, 2, 1, 4, 16)},
        RuntimeError,
        "expected key.size(3) == 8 (query's head_dim), got 4",
    ),
    (
        {"key": zeros(2, 2, 1, 8, 16)},
        RuntimeError,
        "expected value.size(2) == 16 (key's slots), got 7",
    ),
    (
        {"value": zeros(2, 2, 1, 6, 16)},
        RuntimeError,
        "expected value.dim() == 4 ([B, H_kv, S, D_v]), got 5",
    ),
    (
        {**PAGED, "key": zeros(6, 2, 1, 8, 16)},
        RuntimeError,
        "expected value.size(2) == 16 (key's page_size), got 4",
    ),
    (
        {**PAGED, "value": zeros(5, 2, 4, 6)},
        RuntimeError,
        "expected value.size(0) == 6 (key's num_pages), got 5",
    ),
    (
        {**PAGED, "value": zeros(6, 2, 3, 6)},
        RuntimeError,
        "expected value.size(2) == 4 (key's page_size), got 3",
    ),
    (
        {"key": zeros(2, 0, 7, 8), "value": zeros(2, 0, 7, 6)},
        RuntimeError,
        "expected key.size(1) >= 1 (num_kv_heads), got 0",
    ),
    (
        {"key": zeros(2, 3, 7, 8), "value": zeros(2, 3, 7, 6)},
        RuntimeError,
        "expected query.size(1) to be a multiple of key.size(1) "
        "(query heads share KV heads evenly), got 4 and 3",
    ),
    # seq_lens
    (
        {"seq_lens": zeros(3, dtype=int64)},
        RuntimeError,
        "expected seq_lens of shape [2] ([B]), got [3]",
    ),
    (
        {"seq_lens": zeros(2, 1, dtype=int64)},
        RuntimeError,
        "expected seq_lens of shape [2] ([B]), got [2, 1]",
    ),
    (
        {"seq_lens": zeros(2)},
        RuntimeError,
        "expected seq_lens's dtype to be int32 or int64, got float32",
    ),
    # block_table
    (
        {**PAGED, "block_table": table([0, 1])},
        RuntimeError,
        "expected block_table of shape [2, pages] ([B, pages]), got [1, 2]",
    ),
    (
        {**PAGED, "block_table": zeros(2, dtype=int32)},
        RuntimeError,
        "expected block_table of shape [2, pages] ([B, pages]), got [2]",
    ),
    (
        {**PAGED, "block_table": zeros(2, 2, dtype=int64)},
        RuntimeError,
        "expected block_table's dtype to be int32, got int64",
    ),
    (
        {**PAGED, "key": zeros(6, 2, 0, 8), "value": zeros(6, 2, 0, 6)},
        RuntimeError,
        "expected key.size(2) >= 1 (page_size), got 0",
    ),
    # attn_mask
    (
        {"attn_mask": zeros(2, 4, 3, 7, dtype=int64)},
        RuntimeError,
        "expected attn_mask's dtype to be bool, float32 or float32 (query's dtype), got int64",
    ),
    (
        {"attn_mask": zeros(3, 1, 3, 7)},
        RuntimeError,
        "expected attn_mask to broadcast to [2, 4, 3, 7] ([B, H_q, T, S]), got [3, 1, 3, 7]",
    ),
    (
        {"attn_mask": zeros(6)},
        RuntimeError,
        "expected attn_mask to broadcast to [2, 4, 3, 7] ([B, H_q, T, S]), got [6]",
    ),
    (
        {"attn_mask": zeros(1, 2, 4, 3, 7)},
        RuntimeError,
        "expected attn_mask to broadcast to [2, 4, 3, 7] ([B, H_q, T, S]), got [1, 2, 4, 3, 7]",
    ),
    (
        {**PAGED, "attn_mask": zeros(3, 7)},
        RuntimeError,
        "expected attn_mask to broadcast to [2, 4, 3, 8] ([B, H_q, T, S]), got [3, 7]",
    ),
    # numbers
    ({"window_left": -2}, ValueError, "expected window_left >= -1 (-1 means unlimited), got -2"),
    ({"window_right": -3}, ValueError, "expected window_right >= -1 (-1 means unlimited), got -3"),
    ({"scale": nan}, ValueError, "expected scale to be finite, got nan"),
    ({"softcap": -1.0}, ValueError, "expected softcap >= 0 and finite (0 means none), got -1"),
    ({"softcap": nan}, ValueError, "expected softcap >= 0 and finite (0 means none), got nan"),
    # alibi_slopes and sinks
    (
        {"alibi_slopes": zeros(3)},
        RuntimeError,
        "expected alibi_slopes of shape [4] or [2, 4] ([H_q] or [B, H_q]), got [3]",
    ),
    (
        {"alibi_slopes": zeros(1, 4)},
        RuntimeError,
        "expected alibi_slopes of shape [4] or [2, 4] ([H_q] or [B, H_q]), got [1, 4]",
    ),
    (
        {"alibi_slopes": zeros(4, dtype=float16)},
        RuntimeError,
        "expected alibi_slopes's dtype to be float32 or float32 (query's dtype), got float16",
    ),
    ({"sinks": zeros(2)}, RuntimeError, "expected sinks of shape [4] ([H_q]), got [2]"),
    (
        {"sinks": zeros(4, dtype=float16)},
        RuntimeError,
        "expected sinks's dtype to be float32 or float32 (query's dtype), got float16",
    ),
    # scales
    (
        {**INT8, "key_scale": None},
        RuntimeError,
        "expected key_scale for key of dtype int8, got none",
    ),
    (
        {**INT8, "value_scale": None},
        RuntimeError,
        "expected value_scale for value of dtype int8, got none",
    ),
    (
        {"key_scale": zeros(2)},
        RuntimeError,
        "expected no key_scale for key of dtype float32, got one",
    ),
    (
        {"value_scale": zeros(2)},
        RuntimeError,
        "expected no value_scale for value of dtype float32, got one",
    ),
    (
        {**INT8, "key_scale": zeros(2, dtype=float64)},
        RuntimeError,
        "expected key_scale's dtype to be float32, got float64",
    ),
    (
        {**INT8, "key_scale": zeros(4)},
        RuntimeError,
        "expected key_scale of shape [2] or [2, 2, 7] ([H_kv] or [B, H_kv, S]), got [4]",
    ),
    (
        {**PAGED_INT8, **PAGED_SCALES, "value_scale": zeros(2, 2, 4)},
        RuntimeError,
        "expected value_scale of shape [2] or [6, 2, 4] ([H_kv] or [num_pages, H_kv, page_size]), "
        "got [2, 2, 4]",
    ),
]

ATTENTION_CONTENTS: list[Row] = [
    (
        {"seq_lens": torch.tensor([7, 8])},
        ValueError,
        "expected 0 <= seq_lens[1] <= 7 (key's slots), got 8",
    ),
    (
        {"seq_lens": torch.tensor([-1, 7], dtype=int32)},
        ValueError,
        "expected 0 <= seq_lens[0] <= 7 (key's slots), got -1",
    ),
    (
        {**PAGED, "seq_lens": torch.tensor([8, 9])},
        ValueError,
        "expected 0 <= seq_lens[1] <= 8 (key's slots), got 9",
    ),
    (
        {**PAGED, "block_table": table([0, 1], [2, 6])},
        ValueError,
        "expected 0 <= block_table[1, 1] < 6 (num_pages), got 6",
    ),
    (
        {**PAGED, "block_table": table([-1, -1], [2, -1]), "seq_lens": torch.tensor([0, 5])},
        ValueError,
        "expected 0 <= block_table[1, 1] < 6 (num_pages), got -1",
    ),
]

MERGE: list[Row] = [
    (
        {"lses": [zeros(2, 4, 3)]},
        RuntimeError,
        "expected len(lses) == 2 (one per part in outs), got 1",
    ),
    (
        {"outs": [zeros(4, 3, 8)] * 2},
        RuntimeError,
        "expected outs[0].dim() == 4 ([B, H_q, T, D_v]), got 3",
    ),
    (
        {"outs": [zeros(2, 4, 3, 8), zeros(8)]},
        RuntimeError,
        "expected outs[1].dim() == 4 ([B, H_q, T, D_v]), got 1",
    ),
    (
        {"outs": [zeros(2, 4, 3, 8, dtype=int8)] * 2},
        RuntimeError,
        f"expected outs[0]'s dtype to be {FLOATS}, got int8",
    ),
    (
        {"outs": [zeros(2, 4, 3, 8), zeros(2, 4, 3, 8, dtype=bfloat16)]},
        RuntimeError,
        "expected outs[1]'s dtype to be float32 (outs[0]'s dtype), got bfloat16",
    ),
    (
        {"lses": [zeros(2, 4, 3), zeros(2, 4, 3, dtype=float64)]},
        RuntimeError,
        "expected lses[1]'s dtype to be float32, got float64",
    ),
    (
        {"outs": [zeros(2, 4, 3, 8, dtype=float64)] * 2},
        RuntimeError,
        "expected lses[0]'s dtype to be float64, got float32",
    ),
    (
        {"outs": [zeros(2, 4, 3, 8), zeros(2, 4, 3, 6)]},
        RuntimeError,
        "expected outs[1].size(3) == 8 (as in outs[0]), got 6",
    ),
    ({"lses": [zeros(4, 3)] * 2}, RuntimeError, "expected lses[0].dim() == 3 ([B, H_q, T]), got 2"),
    (
        {"lses": [zeros(2, 4, 3), zeros(2, 1, 3)]},
        RuntimeError,
        "expected lses[1].size(1) == 4 (as in outs[0]), got 1",
    ),
]

APPEND: list[Row] = [
    # dimensions
    (
        {"key_cache": zeros(2, 7, 8)},
        RuntimeError,
        "expected key_cache.dim() == 4 ([B, H_kv, S, D]), got 3",
    ),
    (
        {"value_cache": zeros(2, 7, 6)},
        RuntimeError,
        "expected value_cache.dim() == 4 ([B, H_kv, S, D_v]), got 3",
    ),
    (
        {**PAGED_APPEND, "key_cache": zeros(6, 4, 8)},
        RuntimeError,
        "expected key_cache.dim() == 4 ([num_pages, H_kv, page_size, D]), got 3",
    ),
    ({"key": zeros(2, 3, 8)}, RuntimeError, "expected key.dim() == 4 ([B, H_kv, T, D]), got 3"),
    (
        {"value": zeros(2, 3, 6)},
        RuntimeError,
        "expected value.dim() == 4 ([B, H_kv, T, D_v]), got 3",
    ),
    # dtypes
    (
        {"key_cache": zeros(2, 2, 7, 8, dtype=int64)},
        RuntimeError,
        "expected key_cache's dtype to be float32, float64, bfloat16, float16, int8 or "
        "float8_e4m3fn, got int64",
    ),
    (
        {"value_cache": zeros(2, 2, 7, 6, dtype=bfloat16)},
        RuntimeError,
        "expected value_cache's dtype to be float32 (key_cache's dtype), got bfloat16",
    ),
    (
        {"key": zeros(2, 2, 3, 8, dtype=int8)},
        RuntimeError,
        f"expected key's dtype to be {FLOATS}, got int8",
    ),
    (
        {"value": zeros(2, 2, 3, 6, dtype=bfloat16)},
        RuntimeError,
        "expected value's dtype to be float32 (key's dtype), got bfloat16",
    ),
    # sizes
    (
        {"key": zeros(1, 2, 3, 8)},
        RuntimeError,
        "expected key.size(0) == 2 (key_cache's batch), got 1",
    ),
    (
        {"value_cache": zeros(1, 2, 7, 6)},
        RuntimeError,
        "expected value_cache.size(0) == 2 (key_cache's batch), got 1",
    ),
    (
        {**PAGED_APPEND, "value_cache": zeros(5, 2, 4, 6)},
        RuntimeError,
        "expected value_cache.size(0) == 6 (key_cache's num_pages), got 5",
    ),
    (
        {"value_cache": zeros(2, 1, 7, 6)},
        RuntimeError,
        "expected value_cache.size(1) == 2 (key_cache's num_kv_heads), got 1",
    ),
    (
        {"value_cache": zeros(2, 2, 8, 6)},
        RuntimeError,
        "expected value_cache.size(2) == 7 (key_cache's slots), got 8",
    ),
    (
        {**PAGED_APPEND, "value_cache": zeros(6, 2, 8, 6)},
        RuntimeError,
        "expected value_cache.size(2) == 4 (key_cache's page_size), got 8",
    ),
    (
        {"key": zeros(2, 1, 3, 8)},
        RuntimeError,
        "expected key.size(1) == 2 (key_cache's num_kv_heads), got 1",
    ),
    (
        {"key": zeros(2, 2, 3, 4)},
        RuntimeError,
        "expected key.size(3) == 8 (key_cache's head_dim), got 4",
    ),
    (
        {"value": zeros(1, 2, 3, 6)},
        RuntimeError,
        "expected value.size(0) == 2 (key's batch), got 1",
    ),
    (
        {"value": zeros(2, 4, 3, 6)},
        RuntimeError,
        "expected value.size(1) == 2 (key_cache's num_kv_heads), got 4",
    ),
    (
        {"value": zeros(2, 2, 1, 6)},
        RuntimeError,
        "expected value.size(2) == 3 (key's new tokens), got 1",
    ),
    (
        {"value": zeros(2, 2, 3, 8)},
        RuntimeError,
        "expected value.size(3) == 6 (value_cache's head_dim), got 8",
    ),
    # positions and block_table
    (
        {"positions": zeros(3, dtype=int64)},
        RuntimeError,
        "expected positions of shape [2] ([B]), got [3]",
    ),
    (
        {"positions": zeros((), dtype=int64)},
        RuntimeError,
        "expected positions of shape [2] ([B]), got []",
    ),
    (
        {"positions": zeros(2)},
        RuntimeError,
        "expected positions's dtype to be int32 or int64, got float32",
    ),
    (
        {**PAGED_APPEND, "block_table": table([0, 1])},
        RuntimeError,
        "expected block_table of shape [2, pages] ([B, pages]), got [1, 2]",
    ),
    (
        {**PAGED_APPEND, "block_table": zeros(2, 2, dtype=int64)},
        RuntimeError,
        "expected block_table's dtype to be int32, got int64",
    ),
    (
        {**PAGED_APPEND, "key_cache": zeros(6, 2, 0, 8), "value_cache": zeros(6, 2, 0, 6)},
        RuntimeError,
        "expected key_cache.size(2) >= 1 (page_size), got 0",
    ),
    # scales
    (
        {**FLOAT8_CACHE, "key_scale": None},
        RuntimeError,
        "expected key_scale for key_cache of dtype float8_e4m3fn, got none",
    ),
    (
        {**FLOAT8_CACHE, "value_scale": None},
        RuntimeError,
        "expected value_scale for value_cache of dtype float8_e4m3fn, got none",
    ),
    (
        {"key_scale": zeros(2)},
        RuntimeError,
        "expected no key_scale for key_cache of dtype float32, got one",
    ),
    (
        {"value_scale": zeros(2)},
        RuntimeError,
        "expected no value_scale for value_cache of dtype float32, got one",
    ),
    (
        {**FLOAT8_CACHE, "value_scale": zeros(2, dtype=float64)},
        RuntimeError,
        "expected value_scale's dtype to be float32, got float64",
    ),
    (
        {**FLOAT8_CACHE, "key_scale": zeros(2, 2, 3)},
        RuntimeError,
        "expected key_scale of shape [2] or [2, 2, 7] ([H_kv] or [B, H_kv, S]), got [2, 2, 3]",
    ),
]

APPEND_CONTENTS: list[Row] = [
    (
        {"positions": torch.tensor([0, 5])},
        ValueError,
        "expected 0 <= positions[1] <= 4 (capacity 7 - 3 new tokens), got 5",
    ),
    (
        {"positions": torch.tensor([-1, 0], dtype=int32)},
        ValueError,
        "expected 0 <= positions[0] <= 4 (capacity 7 - 3 new tokens), got -1",
    ),
    (
        {"positions": torch.tensor([0, 2**63 - 1])},
        ValueError,
        f"expected 0 <= positions[1] <= 4 (capacity 7 - 3 new tokens), got {2**63 - 1}",
    ),
    (
        {"key": zeros(2, 2, 8, 8), "value": zeros(2, 2, 8, 6), "positions": torch.tensor([0, 0])},
        ValueError,
        "expected 0 <= positions[0] <= -1 (capacity 7 - 8 new tokens), got 0",
    ),
    (
        {**PAGED_APPEND, "positions": torch.tensor([0, 6])},
        ValueError,
        "expected 0 <= positions[1] <= 5 (capacity 8 - 3 new tokens), got 6",
    ),
    (
        {**PAGED_APPEND, "block_table": table([0, -1], [2, 6]), "positions": torch.tensor([0, 2])},
        ValueError,
        "expected 0 <= block_table[1, 1] < 6 (num_pages), got 6",
    ),
    (
        {**FLOAT8_CACHE, "value_scale": torch.tensor([1.0, 0.0])},
        ValueError,
        "expected value_scale[1] > 0 and finite, got 0",
    ),
    (
        {**FLOAT8_CACHE, "key_scale": torch.tensor([nan, 1.0])},
        ValueError,
        "expected key_scale[0] > 0 and finite, got nan",
    ),
]

# What cannot be written in place.
APPEND_MEMORY: list[Row] = [
    (
        {"key_cache": zeros(2, 2, 7, 16)[..., ::2]},
        RuntimeError,
        "expected key_cache.stride(-1) == 1 (it is written in place), got 2",
    ),
    (
        {"value_cache": zeros(2, 2, 7, 12)[..., ::2]},
        RuntimeError,
        "expected value_cache.stride(-1) == 1 (it is written in place), got 2",
    ),
    (
        {"key_cache": zeros(2, 2, 1, 8, 32)[..., :16], "value_cache": zeros(2, 2, 16, 6)},
        RuntimeError,
        "expected key_cache.stride(3) == 16 (packed keys are written in place), got 32",
    ),
    (
        {"key_cache": zeros(1, 2, 7, 8).expand(2, 2, 7, 8)},
        RuntimeError,
        "expected key_cache not to overlap itself, got strides [0, 56, 8, 1]",
    ),
    (
        {**FLOAT8_CACHE, "key_scale": zeros(2, 2, 1).expand(2, 2, 7)},
        RuntimeError,
        "expected key_scale not to overlap itself, got strides [2, 1, 0]",
    ),
]

# What only CPU kernels do.
CUDA_ATTENTION: list[Row] = [
    (
        {name: zeros(2, 4, 3, 8, dtype=float64) for name in ("query", "key", "value")},
        NotImplementedError,
        f"expected query's dtype to be {CUDA_FLOATS} on CUDA, got float64",
    ),
    (
        {"query": zeros(2, 4, 3, 577), "key": zeros(2, 2, 7, 577)},
        NotImplementedError,
        "expected query.size(-1) <= 576 on CUDA, got 577",
    ),
    (
        {"value": zeros(2, 2, 7, 513)},
        NotImplementedError,
        "expected value.size(-1) <= 512 on CUDA, got 513",
    ),
]
CUDA_MERGE: list[Row] = [
    (
        {
            "outs": [zeros(2, 4, 3, 8, dtype=float64)],
            "lses": [zeros(2, 4, 3, dtype=float64)],
        },
        NotImplementedError,
        f"expected outs[0]'s dtype to be {CUDA_FLOATS} on CUDA, got float64",
    )
]
CUDA_APPEND: list[Row] = [
    (
        {"key_cache": zeros(2, 2, 1, 8, 16), "value_cache": zeros(2, 2, 16, 6)},
        NotImplementedError,
        "expected key_cache.dim() == 4 on CUDA (packed keys are for the CPU), got 5",
    ),
    (
        {name: zeros(2, 2, 7, 8, dtype=float64) for name in ("key_cache", "value_cache")}
        | {"value": zeros(2, 2, 3, 8)},
        NotImplementedError,
        f"expected key_cache's dtype to be {CUDA_FLOATS} on CUDA, got float64",
    ),
    (
        {
            "key": zeros(2, 2, 3, 8, dtype=float64),
            "value": zeros(2, 2, 3, 6, dtype=float64),
        },
        NotImplementedError,
        f"expected key's dtype to be {CUDA_FLOATS} on CUDA, got float64",
    ),
]

CUDA_BACKWARD: list[Row] = [
    (
        {"query": zeros(2, 4, 3, 257), "key": zeros(2, 2, 7, 257)},
        NotImplementedError,
        "expected query.size(-1) <= 256 on CUDA, got 257",
    ),
    (
        {
            "value": zeros(2, 2, 7, 257),
            "out": zeros(2, 4, 3, 257),
            "grad_out": zeros(2, 4, 3, 257),
        },
        NotImplementedError,
        "expected value.size(-1) <= 256 on CUDA, got 257",
    ),
]

ARGUMENTS = {
    "attention": attention_arguments,
    "attention_lse": attention_arguments,
    "attention_backward": backward_arguments,
    "merge": merge_arguments,
    "kv_append": append_arguments,
}
SHAPES = {"attention": ATTENTION, "attention_lse": ATTENTION, "merge": MERGE, "kv_append": APPEND}
CONTENTS = {
    "attention": ATTENTION_CONTENTS,
    "attention_lse": ATTENTION_CONTENTS,
    "kv_append": APPEND_CONTENTS,
}
MEMORY = {"kv_append": APPEND_MEMORY}
CUDA = {
    "attention": CUDA_ATTENTION,
    "attention_lse": CUDA_ATTENTION,
    "attention_backward": CUDA_BACKWARD,
    "merge": CUDA_MERGE,
    "kv_append": CUDA_APPEND,
}


def rows(tables: dict[str, list[Row]]) -> list[Any]:
    return [
        pytest.param(op, *row, id=f"{op}: {row[2]}")
        for op, table in tables.items()
        for row in table
    ]


def snapshot(arguments: Arguments) -> list[Tensor]:
    copies = map_tensors(lambda x: x.clone(), arguments)
    return [x for x in tree_leaves(copies) if isinstance(x, Tensor)]


@pytest.mark.parametrize(
    ("op", "changes", "error", "message"), rows(SHAPES) + rows(CONTENTS) + rows(MEMORY)
)
@pytest.mark.parametrize("door", [wrapper, torch_ops, script])
def test_error(
    door: Any, op: str, changes: Arguments, error: type[Exception], message: str
) -> None:
    arguments = ARGUMENTS[op]() | changes
    before = snapshot(arguments)
    # The TorchScript interpreter wraps every error into its own.
    with pytest.raises(RuntimeError if door is script else error) as raised:
        door(op, arguments)
    lines = str(raised.value).splitlines()
    full = f"mqa::{op}: {message}"
    assert any(line.endswith(": " + full) for line in lines) if door is script else lines[0] == full
    assert all(same_bits(a, b) for a, b in zip(before, snapshot(arguments), strict=True))


@pytest.mark.parametrize(("op", "changes", "error", "message"), rows(SHAPES))
@pytest.mark.parametrize("door", [meta, fake])
def test_error_without_data(
    door: Any, op: str, changes: Arguments, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        door(op, ARGUMENTS[op]() | changes)
    assert str(raised.value).splitlines()[0] == f"mqa::{op}: {message}"


@pytest.mark.parametrize(
    ("op", "changes", "error", "message"), rows(SHAPES) + rows(MEMORY) + rows(CUDA)
)
@pytest.mark.usefixtures("built_with_cuda")
def test_error_on_cuda(op: str, changes: Arguments, error: type[Exception], message: str) -> None:
    """It comes before anything is asked of a device: no GPU is needed."""
    assert refusal_on_cuda(op, changes) == (error.__name__, f"mqa::{op}: {message}")


@pytest.mark.parametrize(("op", "changes", "error", "message"), rows(CONTENTS))
@pytest.mark.usefixtures("built_with_cuda")
def test_debugging_reads_contents_on_cuda(
    op: str, changes: Arguments, error: type[Exception], message: str
) -> None:
    refusals = refusals_of_contents_with("MQA_DEBUG", "1")
    assert refusals[f"{op}: {message}"] == [error.__name__, f"mqa::{op}: {message}"]


def refusal_on_cuda(op: str, changes: Arguments) -> tuple[str, str]:
    try:
        cuda_key(op, ARGUMENTS[op]() | changes)
    except Exception as error:
        return type(error).__name__, str(error).splitlines()[0]
    return "nothing", ""


@cache
def refusals_of_contents_with(variable: str, value: str) -> dict[str, list[str]]:
    """From a process of its own: the variable is read once."""
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, variable: value},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    refusals: dict[str, list[str]] = json.loads(done.stdout)
    return refusals


@pytest.mark.parametrize(("op", "changes", "error", "message"), rows(CONTENTS) + rows(MEMORY))
def test_contents_are_not_read_without_data(
    op: str, changes: Arguments, error: type[Exception], message: str
) -> None:
    meta(op, ARGUMENTS[op]() | changes)


@pytest.mark.parametrize(
    ("op", "name", "first"),
    [
        *(("attention", name, "query") for name in ("key", "value", "attn_mask", "seq_lens")),
        *(("attention", name, "query") for name in ("block_table", "alibi_slopes", "sinks")),
        *(("attention", name, "query") for name in ("key_scale", "value_scale")),
        *(
            ("kv_append", name, "key_cache")
            for name in ("value_cache", "key", "value", "positions")
        ),
        *(("kv_append", name, "key_cache") for name in ("block_table", "key_scale", "value_scale")),
    ],
)
def test_devices_differ(op: str, name: str, first: str) -> None:
    arguments = ARGUMENTS[op]()
    arguments[name] = arguments.get(name, zeros(2)).to("meta")
    with pytest.raises(RuntimeError) as raised:
        torch_ops(op, arguments)
    expected = f"mqa::{op}: expected {name} on cpu ({first}'s device), got meta"
    assert str(raised.value).splitlines()[0] == expected


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"outs": [zeros(2, 4, 3, 8), zeros(2, 4, 3, 8, device="meta")]}, "outs[1]"),
        ({"lses": [zeros(2, 4, 3, device="meta"), zeros(2, 4, 3)]}, "lses[0]"),
    ],
)
def test_devices_of_parts_differ(changes: Arguments, name: str) -> None:
    with pytest.raises(RuntimeError) as raised:
        torch_ops("merge", merge_arguments() | changes)
    expected = f"mqa::merge: expected {name} on cpu (outs[0]'s device), got meta"
    assert str(raised.value).splitlines()[0] == expected


def test_merge_of_nothing() -> None:
    """The dispatcher cannot choose a kernel without a tensor, so the wrapper answers."""
    with pytest.raises(RuntimeError) as raised:
        wrapper("merge", {"outs": [], "lses": []})
    assert str(raised.value) == "mqa::merge: expected at least one part in outs, got none"


@pytest.mark.parametrize("op", ARGUMENTS)
def test_the_unchanged_arguments_are_valid(op: str) -> None:
    public = [] if op == "attention_backward" else [wrapper]
    for door in (*public, torch_ops, script, meta, fake):
        door(op, ARGUMENTS[op]())


if __name__ == "__main__":
    print(json.dumps({row.id: refusal_on_cuda(*row.values[:2]) for row in rows(CONTENTS)}))
