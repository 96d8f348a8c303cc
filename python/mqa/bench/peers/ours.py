"""mqa.attention."""

from __future__ import annotations

import torch
from torch import Tensor

import mqa
from mqa.bench.inputs import Inputs, copies_of, dequantised
from mqa.bench.peers.contender import Contender, UnsupportedError


def prepare(inputs: Inputs) -> Contender:
    """The operator on the caches as they are."""
    query, caches, is_causal = inputs.query, inputs.caches, inputs.case.is_causal
    if not inputs.case.is_quantised:
        return Contender(
            lambda i: mqa.attention(query, caches[i].key, caches[i].value, is_causal=is_causal)
        )

    def run(i: int) -> Tensor:
        cache = caches[i]
        return mqa.attention(
            query,
            cache.key,
            cache.value,
            is_causal=is_causal,
            key_scale=cache.key_scale,
            value_scale=cache.value_scale,
        )

    return Contender(run)


def prepare_unquantised(inputs: Inputs) -> Contender:
    """For an 8-bit cache: the operator on a bfloat16 cache with the same values."""
    if not inputs.case.is_quantised:
        raise UnsupportedError("the cache is not quantised")
    query, is_causal = inputs.query, inputs.case.is_causal
    caches = copies_of(dequantised(inputs.caches[0], torch.bfloat16), len(inputs.caches))
    return Contender(
        lambda i: mqa.attention(query, caches[i].key, caches[i].value, is_causal=is_causal)
    )
