"""mqa.attention."""

from __future__ import annotations

import torch
from torch import Tensor

import mqa
from mqa.bench.inputs import Cache, Inputs, copies_of, dequantised, packed
from mqa.bench.peers.contender import Contender


def prepare(inputs: Inputs) -> Contender:
    """The operator on the caches as they are."""
    return _on(inputs, inputs.caches)


def prepare_packed(inputs: Inputs) -> Contender:
    """The operator on caches with packed keys."""
    return _on(inputs, copies_of(packed(inputs.caches[0]), len(inputs.caches)))


def prepare_unquantised(inputs: Inputs) -> Contender:
    """For an 8-bit cache: the operator on a bfloat16 cache with the same values."""
    first = dequantised(inputs.caches[0], torch.bfloat16)
    return _on(inputs, copies_of(first, len(inputs.caches)))


def _on(inputs: Inputs, caches: list[Cache]) -> Contender:
    query, is_causal = inputs.query, inputs.case.is_causal
    if caches[0].key_scale is None:  # options are not free
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
