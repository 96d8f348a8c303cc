"""The packages FlashAttention and FlashInfer, which run on GPUs only."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mqa.bench.inputs import Inputs
from mqa.bench.peers.contender import Contender, UnsupportedError, refuse_quantised

PAGE_SIZE = 16
WORKSPACE_BYTES = 128 * 2**20  # as its documentation asks for


def prepare_attention(inputs: Inputs) -> Contender:
    """FlashAttention's function for decoding, on the caches as they are."""
    refuse_quantised(inputs)
    flash_attn: Any = import_module("flash_attn")
    case = inputs.case
    query = inputs.query.transpose(1, 2)
    lengths = torch.full((case.batch,), case.context, dtype=torch.int32, device=query.device)

    def run(i: int) -> Tensor:
        cache = inputs.caches[i]
        keys, values = cache.key.transpose(1, 2), cache.value.transpose(1, 2)  # [B, S, H_kv, D]
        return flash_attn.flash_attn_with_kvcache(
            query, keys, values, cache_seqlens=lengths, causal=case.is_causal
        )

    return Contender(run, lambda result: result.transpose(1, 2))


def prepare_infer(inputs: Inputs) -> Contender:
    """FlashInfer's paged decoding; the caches of one KV head are pools of pages as they are."""
    refuse_quantised(inputs)
    case = inputs.case
    if case.tokens > 1 or case.kv_heads > 1 or case.context % PAGE_SIZE:
        raise UnsupportedError(f"only decode, one KV head and whole pages of {PAGE_SIZE}")
    flashinfer: Any = import_module("flashinfer")
    query = inputs.query.squeeze(2)
    device, pages = query.device, case.context // PAGE_SIZE
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD")
    wrapper.plan(
        torch.arange(case.batch + 1, dtype=torch.int32, device=device) * pages,
        torch.arange(case.batch * pages, dtype=torch.int32, device=device),
        torch.full((case.batch,), PAGE_SIZE, dtype=torch.int32, device=device),
        case.query_heads,
        case.kv_heads,
        case.head_dim,
        PAGE_SIZE,
        q_data_type=query.dtype,
        kv_data_type=query.dtype,
    )

    def pool(tensor: Tensor) -> Tensor:  # [pages, page size, H_kv, D]
        return tensor.view(-1, PAGE_SIZE, 1, case.head_dim)

    pools = [(pool(cache.key), pool(cache.value)) for cache in inputs.caches]
    return Contender(lambda i: wrapper.run(query, pools[i]), lambda result: result.unsqueeze(2))
