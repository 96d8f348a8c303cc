"""The attention function that models call."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mqa import attention
from mqa.integrations.transformers.masks import is_packed, unpack

# Arguments that change the result of an attention that knows them, and what they are.
_UNSUPPORTED = {
    "output_attentions": "attention weights as an output",
    "position_bias": "a learned bias for pairs of positions",
    "head_mask": "a factor for each head",
    "indices": "sparse attention to chosen keys",
    "block_indices": "sparse attention to chosen blocks",
    "sinks": "sinks that depend on the query",
}


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention for a layer of a model; registered with ``AttentionInterface``.

    Args:
        module: the layer.
        query: [B, H_q, T, D].
        key: [B, H_kv, S, D], not repeated; 8-bit with its factors in ``key.mqa_scale``.
        value: [B, H_kv, S, D_v], the same.
        attention_mask: of :func:`~mqa.integrations.transformers.masks.visible_keys`, or the
            caller's own, bool or float, that broadcasts to [B, H_q, T, S] and says everything.
        dropout: of attention weights; only 0.
        scaling: factor of the scores.
        sliding_window: keys that a query sees, its own included, if the mask says so.
        softcap: bound of the scores.
        s_aux: sinks [H_q].
        is_causal: whether queries see up to the diagonal if there is no mask; ``module.is_causal``
            by default.
        **kwargs: what else the model hands down; an error if it would change the result.

    Returns:
        [B, T, H_q, D_v], contiguous, and None instead of the attention weights.
    """
    refuse_unsupported(module, dropout=dropout, **kwargs)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    seq_lens, has_window = None, False
    if attention_mask is not None and is_packed(attention_mask):
        seq_lens, attention_mask, has_window = unpack(attention_mask)
    elif attention_mask is not None:
        causal = False
    out = attention(
        query,
        key,
        value,
        attention_mask,
        is_causal=causal,
        scale=scaling,
        seq_lens=seq_lens,
        window_left=_window_left(module, sliding_window) if has_window else -1,
        softcap=softcap or 0.0,
        sinks=s_aux,
        key_scale=getattr(key, "mqa_scale", None),
        value_scale=getattr(value, "mqa_scale", None),
    )
    return out.transpose(1, 2).contiguous(), None


def refuse_unsupported(module: nn.Module, *, dropout: float, **kwargs: Any) -> None:
    """Refuses what would change the result and :func:`mqa.attention` lacks."""
    if dropout > 0:
        raise _lacks(module, f"dropout of attention weights (dropout={dropout})")
    for argument, meaning in _UNSUPPORTED.items():
        value = kwargs.get(argument)
        if value is not None and value is not False:
            raise _lacks(module, f"{meaning} ({argument})")


def _window_left(module: nn.Module, sliding_window: int | None) -> int:
    if sliding_window is None:
        raise _lacks(module, "a sliding window that it does not pass on (sliding_window=None)")
    return sliding_window - 1


def _lacks(module: nn.Module, feature: str) -> NotImplementedError:
    return NotImplementedError(
        f'mqa: {type(module).__name__} needs {feature}, which attn_implementation="mqa" lacks'
    )
