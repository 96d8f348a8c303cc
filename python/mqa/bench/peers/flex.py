"""PyTorch's FlexAttention, compiled for each case."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from mqa.bench.inputs import Inputs
from mqa.bench.peers.contender import Contender, refuse_quantised


def prepare(inputs: Inputs) -> Contender:
    """Compiled with static shapes, its fastest form."""
    refuse_quantised(inputs)
    query, caches = inputs.query, inputs.caches
    block_mask = _causal_mask(inputs) if inputs.case.is_causal else None
    torch._dynamo.reset()  # or it would stop specialising after a few cases
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    return Contender(
        lambda i: compiled(
            query, caches[i].key, caches[i].value, block_mask=block_mask, enable_gqa=True
        )
    )


def _causal_mask(inputs: Inputs) -> BlockMask:
    def is_visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query >= key

    case = inputs.case
    return create_block_mask(
        is_visible, None, None, case.tokens, case.context, device=inputs.query.device
    )
