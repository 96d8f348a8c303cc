"""The formulas the library must agree with, written once in plain PyTorch.

In float64 they are the oracle; in a lower `dtype` the same lines are the yardstick for its errors.
"""

import torch
from torch import Tensor

QUANTISED_MAX = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    seq_lens: Tensor | None = None,
    block_table: Tensor | None = None,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp, every step rounded to `dtype`; differentiable."""
    B, H_q, T, D = query.shape
    key, value = (
        dense(key, key_scale, block_table, dtype),
        dense(value, value_scale, block_table, dtype),
    )
    H_kv, S = key.shape[1:3]
    lens = (torch.full((B,), S) if seq_lens is None else seq_lens.long()).view(B, 1, 1, 1)
    slot, diagonal = torch.arange(S), lens - T + torch.arange(T).view(T, 1)

    used = slot < lens
    visible = used.expand(B, H_q, T, S)
    if is_causal:
        visible = visible & (slot <= diagonal)
    if window_left >= 0:
        visible = visible & (slot >= diagonal - window_left)
    if window_right >= 0:
        visible = visible & (slot <= diagonal + window_right)

    key, value = (x.masked_fill(~used.mT, 0) for x in (key, value))
    grouped = query.to(dtype).reshape(B, H_kv, H_q // H_kv * T, D)
    scores = (grouped @ key.mT).view(B, H_q, T, S) * (D**-0.5 if scale is None else scale)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if alibi_slopes is not None:
        distance = (diagonal - slot).abs().to(dtype)
        scores = scores - alibi_slopes.to(dtype).view(-1, H_q, 1, 1) * distance
    if attn_mask is not None:
        is_bool = attn_mask.dtype == torch.bool
        visible = visible & (attn_mask if is_bool else attn_mask > -torch.inf)
        scores = scores if is_bool else scores + attn_mask.to(dtype)
    scores = scores.masked_fill(~visible, -torch.inf)

    sink = torch.full((H_q,), -torch.inf) if sinks is None else sinks
    logits = torch.cat([scores, sink.to(dtype).view(H_q, 1, 1).expand(B, H_q, T, 1)], -1)
    weights = torch.softmax(logits, -1)[..., :-1].masked_fill(~visible, 0)
    out = weights.view(B, H_kv, H_q // H_kv * T, S) @ value
    return out.view(B, H_q, T, value.size(-1)), torch.logsumexp(logits, -1)


def dense(
    cache: Tensor, scale: Tensor | None, block_table: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The cache as one dequantised tensor `[B, H_kv, S, D]`."""
    cache = cache.to(dtype)
    if scale is not None:
        cache = cache * (scale.view(-1, 1, 1) if scale.dim() == 1 else scale.unsqueeze(-1)).to(
            dtype
        )
    if block_table is None:
        return cache
    pages = cache[block_table.long().clamp(0, cache.size(0) - 1)]  # [B, pages, H_kv, page_size, D]
    return pages.transpose(1, 2).flatten(2, 3)


def merge(
    outs: list[Tensor], lses: list[Tensor], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Attention over the union of disjoint sets of keys from the results over each set."""
    lse = torch.stack(lses).to(dtype)
    weights = torch.softmax(lse, 0).nan_to_num(0).unsqueeze(-1)  # NaN: no part saw any key
    return (weights * torch.stack(outs).to(dtype)).sum(0), torch.logsumexp(lse, 0)


def quantise(x: Tensor, dtype: torch.dtype, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes and scales `[..., rows]` of `x [..., rows, D]`; a row's scale fits it unless given."""
    largest, x = QUANTISED_MAX[dtype], x.to(torch.promote_types(x.dtype, torch.float32))
    scale = x.abs().amax(-1) / largest if scale is None else scale.expand(x.shape[:-1])
    scale = scale.float()
    codes = (
        (x / scale.unsqueeze(-1)).float().nan_to_num(0).clamp(-largest, largest)
    )  # NaN: a row of zeros
    return (codes.round() if dtype == torch.int8 else codes).to(dtype), scale


def assert_as_accurate_as_torch(
    actual: Tensor, exact: Tensor, plain: Tensor, magnitude: float = 1
) -> None:
    """Errors against the exact result at most twice (mean: 1.5 times) those of plain PyTorch.

    Plus a slack of a few roundings of values of a `magnitude`.
    """
    slack = magnitude * (1e-12 if actual.dtype == torch.float64 else 1e-5)
    assert actual.shape == exact.shape
    assert torch.equal(actual == -torch.inf, exact == -torch.inf)
    seen = exact > -torch.inf
    if seen.any():
        error, allowed = ((x.double() - exact)[seen].abs() for x in (actual, plain))
        assert error.max() <= 2 * allowed.max() + slack
        assert error.mean() <= 1.5 * allowed.mean() + slack
