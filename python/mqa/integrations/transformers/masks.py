"""The mask function: what queries see, in lengths where transformers would fill in [B, 1, T, S].

What it returns is handed to the attention function by the model, which may look at its shape:

* None: each query sees everything up to the diagonal, which ends at the last key;
* int32 [B, 1, 1, 1]: ``seq_len``, where the diagonal ends, since slots after it are not used yet;
* int32 [B, 1, 1, 1 + S]: ``seq_len`` and, for each slot, 1 for a token and 0 for padding;
* int64: the same, and the layer's window hides some of it;
* bool [B, 1, T, S]: any other pattern, True where a query sees a key.

Four dimensions, as ``generate`` makes the mask before it calls a compiled model, and models take a
mask of four dimensions for a finished one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel
from transformers.masking_utils import (
    causal_mask_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
)
from transformers.models.falcon import FalconConfig

MaskFunction = Callable[..., Any]
_WINDOW = sliding_window_causal_mask_function(1).__qualname__  # each call makes a new closure


def visible_keys(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    mask_function: MaskFunction = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    *,
    config: Any,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | None:
    """Says which keys the queries of a call see; registered with ``AttentionMaskInterface``.

    Args:
        batch_size: B.
        q_length: T, new tokens.
        kv_length: S, slots of the keys that the cache will return.
        q_offset: position of the first query, a tensor in static caches.
        kv_offset: slot j holds position ``j + kv_offset``; in the ring of a sliding layer of
            :class:`~mqa.integrations.transformers.MQACache` a tensor [S], one number per slot.
        mask_function: the pattern, a function of batch, head, position of query and of key.
        attention_mask: bool [B, S_seen], False for padding.
        local_size: the window (or the chunk) of the pattern.
        config: of the model.
        device: of the result.
        **kwargs: more about the pattern, see ``transformers.masking_utils``.

    Returns:
        See the module's text.
    """
    _refuse_own_attention(type(config))
    tokens = _tokens(attention_mask, kv_length, kv_offset)
    if not _is_causal_or_window(mask_function, q_length, local_size, config, **kwargs):
        kwargs |= {"q_offset": q_offset, "kv_offset": kv_offset, "device": device}
        kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        pattern: Any = sdpa_mask(
            batch_size, q_length, kv_length, mask_function=mask_function, **kwargs
        )
        return pattern if tokens is None else pattern & tokens[:, None, None, :]
    seq_len = _seq_len(q_length, kv_length, q_offset, kv_offset)
    if tokens is not None and _no_padding(tokens, seq_len):
        tokens = None
    if getattr(config, "alibi", False):
        return _for_alibi(tokens, _all_used(seq_len, kv_length))
    window_hides = local_size is not None and kv_length > local_size
    # False for single steps of a static cache: compiled for lengths, they needn't be for None too.
    may_be_none = kwargs.get("allow_is_causal_skip", True)
    if may_be_none and tokens is None and not window_hides and _all_used(seq_len, kv_length):
        return None
    return _pack(seq_len, tokens, batch_size, torch.int64 if window_hides else torch.int32, device)


def is_packed(mask: Tensor) -> bool:
    """Whether :func:`unpack` can take this mask apart."""
    return mask.dtype in (torch.int32, torch.int64) and mask.shape[1:3] == (1, 1)


def unpack(mask: Tensor) -> tuple[Tensor, Tensor | None, bool]:
    """Takes apart an integer mask of :func:`visible_keys`.

    Returns:
        ``seq_lens`` [B]; bool [B, 1, 1, S], if there is padding; whether there is a window.
    """
    tokens = mask[..., 1:].bool() if mask.size(-1) > 1 else None
    return mask[:, 0, 0, 0], tokens, mask.dtype == torch.int64


def _pack(
    seq_len: int | Tensor,
    tokens: Tensor | None,
    batch_size: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Tensor:
    packed = torch.zeros(batch_size, 1, dtype=dtype, device=device) + seq_len
    if tokens is not None:
        packed = torch.cat([packed, tokens], dim=1)
    return packed.to(dtype)[:, None, None, :]


def _tokens(
    attention_mask: Tensor | None, kv_length: int, kv_offset: int | Tensor
) -> Tensor | None:
    """Bool [B, S]: which slots hold tokens that the caller's mask [B, S_seen] shows."""
    if attention_mask is None:
        return None
    positions = torch.arange(kv_length, device=attention_mask.device) + kv_offset
    last = attention_mask.size(1) - 1
    return attention_mask[:, positions.clamp(max=last)] & (positions <= last)


def _seq_len(
    q_length: int, kv_length: int, q_offset: int | Tensor, kv_offset: int | Tensor
) -> int | Tensor:
    """How many slots are used; the diagonal ends at the last of them."""
    end = q_offset + q_length
    if isinstance(kv_offset, Tensor) and kv_offset.dim() == 1:  # a ring, and a single query
        return end.clamp(max=kv_length) if isinstance(end, Tensor) else min(end, kv_length)
    return end - kv_offset


def _all_used(seq_len: int | Tensor, kv_length: int) -> bool:
    return not isinstance(seq_len, Tensor) and seq_len == kv_length


def _no_padding(tokens: Tensor, seq_len: int | Tensor) -> bool:
    if torch.compiler.is_compiling():  # what is in a tensor cannot decide anything
        return False
    unused = torch.arange(tokens.size(1), device=tokens.device) >= seq_len
    return bool((tokens | unused).all())


def _is_causal_or_window(
    mask_function: MaskFunction,
    q_length: int,
    local_size: int | None,
    config: Any,
    *,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool | None = None,
    use_vmap: bool = False,
    **_: Any,
) -> bool:
    """Whether the pattern is nothing but causal, or causal with a sliding window.

    A window is a closure, whose contents cannot be looked at in a compiled function. Patterns
    closed over in the same way are told apart by what else is known of them: custom functions and
    bidirectional windows bring arguments of their own, chunks a field in the configuration, and
    packed sequences forbid to leave the mask out, as else only single steps of a static cache do.
    """
    if mask_function is causal_mask_function:
        return True
    return (
        mask_function.__qualname__ == _WINDOW
        and local_size is not None
        and not use_vmap
        and allow_is_bidirectional_skip is None
        and getattr(config, "attention_chunk_size", None) is None
        and (allow_is_causal_skip or q_length == 1)
    )


def _for_alibi(tokens: Tensor | None, all_used: bool) -> Tensor | None:
    """Bool [B, 1, 1, S]: Falcon merges it with its biases, which are the same for all queries."""
    if not all_used:
        raise NotImplementedError(
            "mqa: Falcon with ALiBi makes biases for the tokens so far, not for all slots of a "
            "static cache; use a dynamic one"
        )
    return None if tokens is None else tokens[:, None, None, :]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _refuse_own_attention(config_class: type) -> None:
    """Refuses models that compute attention by themselves, whatever is registered."""
    model_class: Any = AutoModel._model_mapping.get(config_class, None)
    if not hasattr(model_class, "_can_set_attn_implementation") or config_class is FalconConfig:
        return
    if not model_class._can_set_attn_implementation():
        raise NotImplementedError(
            f'mqa: attn_implementation="mqa" has no effect on {model_class.__name__}, which does '
            "not look its attention up in transformers' AttentionInterface"
        )
