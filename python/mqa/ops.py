"""Typed wrappers of ``torch.ops.mqa``.

Letters: B batch, H_q query heads, H_kv KV heads (H_q % H_kv == 0), T new tokens, S cache slots,
D head_dim of query and key, D_v head_dim of value. Errors are ``RuntimeError`` (shapes, dtypes,
devices), ``ValueError`` (values out of range) and ``NotImplementedError``; they are raised before
anything is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor
from typing_extensions import Unpack

from mqa import _library

_library.load()


class AttentionOptions(TypedDict, total=False):
    """Keyword arguments of :func:`attention` and :func:`attention_lse`.

    Attributes:
        is_causal: query t of T sees keys ``j <= seq_len - T + t``. Aligned bottom right, unlike
            ``scaled_dot_product_attention``, which aligns top left (for T == S they agree).
        scale: factor of the scores, default ``1 / sqrt(D)``.
        seq_lens: [B], int32 or int64: valid slots of each row; others are never read.
        block_table: [B, pages], int32: key and value are page pools
            [num_pages, H_kv, page_size, D]; slot j lies in page ``block_table[b, j // page_size]``.
        window_left: keys seen before the diagonal ``j = seq_len - T + t``; default -1, all.
        window_right: keys seen after it; default -1, all.
        softcap: replaces a score x by ``softcap * tanh(x / softcap)`` before masks; default 0.
        alibi_slopes: [H_q] or [B, H_q], float32 or query's dtype: subtracts
            ``slope * |(seq_len - T + t) - j|`` (arXiv 2108.12409).
        sinks: [H_q], float32 or query's dtype: a logit per head in the softmax's denominator.
        key_scale: float32 [H_kv] or [B, H_kv, S] (pools: [num_pages, H_kv, page_size]), factors of
            an int8 or float8_e4m3fn key.
        value_scale: the same for value.
    """

    is_causal: bool
    scale: float | None
    seq_lens: Tensor | None
    block_table: Tensor | None
    window_left: int
    window_right: int
    softcap: float
    alibi_slopes: Tensor | None
    sinks: Tensor | None
    key_scale: Tensor | None
    value_scale: Tensor | None


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    **options: Unpack[AttentionOptions],
) -> Tensor:
    """Attention of H_q query heads over H_kv shared KV heads.

    Computes ``softmax(scale * query @ key.T + masks) @ value``, accumulated in float32 (float64 for
    float64). A row's bits depend only on its query, the keys and values it sees, and the options;
    on CUDA also on how many tokens come in one call, where they or the sequence are many.

    Args:
        query: [B, H_q, T, D], float32, float64, bfloat16 or float16.
        key: [B, H_kv, S, D], query's dtype, int8 or float8_e4m3fn. Any strides; read in place as
            long as the last dimension is contiguous, otherwise copied once. Or packed,
            [B, H_kv, S / 16, D, 16] (in a pool [num_pages, H_kv, page_size / 16, D, 16]): sixteen
            slots side by side, as the CPU reads them fastest for up to 8 rows T * H_q / H_kv.
        value: [B, H_kv, S, D_v], key's dtype.
        attn_mask: broadcasts to [B, H_q, T, S]; bool (True attends), float32 or query's dtype
            (added to the scores, -inf hides).
        **options: see :class:`AttentionOptions`.

    Returns:
        [B, H_q, T, D_v] in query's dtype, contiguous; zeros where a row sees no key.

    Example:
        >>> import torch, mqa
        >>> query = torch.randn(1, 8, 1, 64)  # one new token, eight heads
        >>> cache = torch.randn(1, 1, 4096, 64)  # that share one KV head
        >>> mqa.attention(query, cache, cache, seq_lens=torch.tensor([100])).shape
        torch.Size([1, 8, 1, 64])
    """
    return torch.ops.mqa.attention(query, key, value, attn_mask, **options)


def attention_lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    **options: Unpack[AttentionOptions],
) -> tuple[Tensor, Tensor]:
    """:func:`attention` and the natural logarithm of its softmax denominator, sink included.

    Returns:
        out as :func:`attention` gives it, and lse [B, H_q, T], float32 (float64 for float64), -inf
        where a row sees no key.

    Example:
        >>> import torch, mqa
        >>> x = torch.zeros(1, 1, 3, 8)
        >>> mqa.attention_lse(x, x, x)[1]  # log of three equal keys
        tensor([[[1.0986, 1.0986, 1.0986]]])
    """
    return torch.ops.mqa.attention_lse(query, key, value, attn_mask, **options)


def merge(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Merges attention over disjoint sets of keys into attention over their union.

    Args:
        outs: results of :func:`attention_lse`, [B, H_q, T, D_v] each.
        lses: their lse, [B, H_q, T] each, float32 (float64 for float64). A part whose lse is -inf
            is neutral.

    Returns:
        out and lse over all keys.

    Example:
        >>> import torch, mqa
        >>> q, k = torch.randn(1, 4, 1, 8), torch.randn(1, 1, 10, 8)
        >>> parts = [mqa.attention_lse(q, p, p) for p in k.split(5, dim=2)]
        >>> out, _ = mqa.merge(*zip(*parts))
        >>> torch.allclose(out, mqa.attention(q, k, k), atol=1e-6)
        True
    """
    if len(outs) == 0:  # the dispatcher cannot tell the device of nothing
        raise RuntimeError("mqa::merge: expected at least one part in outs, got none")
    return torch.ops.mqa.merge(outs, lses)


def kv_append(
    key_cache: Tensor,
    value_cache: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    *,
    block_table: Tensor | None = None,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> None:
    """Writes new keys and values into their caches, in place.

    Everything is checked before anything is written. Has no gradient. The caches may share memory
    if what is written there is the same, as in latent attention.

    Args:
        key_cache: [B, H_kv, S, D], or with ``block_table`` a pool [num_pages, H_kv, page_size, D];
            a float dtype, int8 or float8_e4m3fn. On CPU it may be packed, see :func:`attention`.
        value_cache: [B, H_kv, S, D_v] or its pool, key_cache's dtype.
        key: [B, H_kv, T, D], a float dtype; converted to the cache's.
        value: [B, H_kv, T, D_v], key's dtype.
        positions: [B], int32 or int64: row b goes to slots ``positions[b] + [0, T)``.
        block_table: [B, pages], int32, see :class:`AttentionOptions`.
        key_scale: with an 8-bit cache, float32: [B, H_kv, S] (pools: [num_pages, H_kv, page_size])
            is written with one scale per token and head, [H_kv] is read as one scale per head.
        value_scale: the same for value.

    Example:
        >>> import torch, mqa
        >>> cache = torch.zeros(2, 2, 1, 16, 8)  # key and value, batch 2, one head, 16 slots
        >>> new = torch.ones(2, 1, 3, 8)
        >>> mqa.kv_append(cache[0], cache[1], new, new, torch.tensor([0, 5]))
        >>> cache[0].sum((1, 3)).nonzero().tolist()
        [[0, 0], [0, 1], [0, 2], [1, 5], [1, 6], [1, 7]]
    """
    torch.ops.mqa.kv_append(
        key_cache,
        value_cache,
        key,
        value,
        positions,
        block_table=block_table,
        key_scale=key_scale,
        value_scale=value_scale,
    )


def cpu_isa() -> str:
    """The instruction set that the CPU kernels use.

    The best one of this machine, or what the environment variable ``MQA_CPU_ISA`` caps it at when
    the library is loaded.

    Returns:
        ``generic``, ``avx2``, ``avx512``, ``avx512_bf16`` or ``amx``.

    Example:
        >>> import mqa
        >>> mqa.cpu_isa() in ("generic", "avx2", "avx512", "avx512_bf16", "amx")
        True
    """
    return str(torch.ops.mqa.cpu_isa())
