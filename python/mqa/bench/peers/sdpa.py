"""PyTorch's scaled_dot_product_attention, in the two ways that do not copy the cache."""

from __future__ import annotations

from torch.nn.functional import scaled_dot_product_attention

from mqa.bench.inputs import Inputs
from mqa.bench.peers.contender import Contender, UnsupportedError, refuse_quantised


def prepare_gqa(inputs: Inputs) -> Contender:
    """As documented: with enable_gqa."""
    refuse_quantised(inputs)
    query, caches, is_causal = inputs.query, inputs.caches, inputs.case.is_causal
    return Contender(
        lambda i: scaled_dot_product_attention(
            query, caches[i].key, caches[i].value, is_causal=is_causal, enable_gqa=True
        )
    )


def prepare_folded(inputs: Inputs) -> Contender:
    """Query heads as query positions of the only head, which works without masks alone."""
    refuse_quantised(inputs)
    if inputs.case.is_causal:
        raise UnsupportedError("cannot mask: heads stand where positions would")
    caches = inputs.caches
    query = inputs.query.transpose(1, 2)  # [B, T = 1, G, D]: one head with G positions
    return Contender(
        lambda i: scaled_dot_product_attention(query, caches[i].key, caches[i].value),
        lambda result: result.transpose(1, 2),
    )
