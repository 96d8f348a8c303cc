"""Two matrix products with a softmax between them, folded as `mqa` folds."""

from __future__ import annotations

import torch
from torch import Tensor

from mqa.bench.inputs import Inputs
from mqa.bench.peers.contender import Contender, UnsupportedError, refuse_quantised
from mqa.units import format_bytes

COPIES_OF_SCORES = 2  # scores and weights


def prepare(inputs: Inputs) -> Contender:
    """softmax(q K^T) V on [B, H_kv, G * T, D], all in the query's dtype."""
    refuse_quantised(inputs)
    case, caches = inputs.case, inputs.caches
    rows = case.group * case.tokens
    scores = case.batch * case.kv_heads * rows * case.context
    needed = COPIES_OF_SCORES * scores * inputs.query.element_size()
    if needed > inputs.available_memory // 2:
        raise UnsupportedError(f"its scores take {format_bytes(needed)}")
    scale = case.head_dim**-0.5
    query = inputs.query.reshape(case.batch, case.kv_heads, rows, case.head_dim)
    mask = None
    if case.is_causal:
        mask = torch.ones(case.tokens, case.context, dtype=torch.bool, device=query.device).triu(1)
        mask = mask.repeat(case.group, 1)

    def run(i: int) -> Tensor:
        scores = (query @ caches[i].key.transpose(-1, -2)) * scale
        if mask is not None:
            scores = scores.masked_fill_(mask, -torch.inf)
        weights = torch.softmax(scores, -1)
        return weights @ caches[i].value

    return Contender(run, lambda result: result.view(inputs.query.shape))
