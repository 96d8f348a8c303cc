"""Change the number of KV heads of a decoder: MHA to GQA to MQA, and back."""

from dataclasses import replace

import torch
from torch import Tensor

from mqa.decoder import Decoder


def convert(model: Decoder, num_kv_heads: int) -> Decoder:
    """A new decoder with `num_kv_heads` KV heads; `model` stays as it is.

    Fewer heads are the means of neighbouring ones (Ainslie et al., GQA, arXiv:2305.13245), which
    changes what the model computes and calls for further training. More heads are repetitions,
    which give the same logits.

    Args:
        model: the decoder to convert.
        num_kv_heads: divides `num_heads`, and divides or is a multiple of the present number.

    Raises:
        ValueError: `num_kv_heads` is not such a number.
    """
    old = model.config.num_kv_heads
    config = replace(model.config, num_kv_heads=num_kv_heads)
    if old % num_kv_heads and num_kv_heads % old:
        raise ValueError(
            f"convert: expected a number of KV heads that divides {old} or is a multiple of it, "
            f"got {num_kv_heads}"
        )
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    for name, weight in weights.items():
        if ".k_proj." in name or ".v_proj." in name:  # weight or bias
            heads = weight.view(old, config.head_dim, *weight.shape[1:])
            weights[name] = _resize(heads, num_kv_heads).flatten(0, 1)
    return Decoder.from_weights(config, weights)


def _resize(heads: Tensor, count: int) -> Tensor:
    """Mean-pool or repeat `heads [H_kv, D, ...]` to `count` heads."""
    old = heads.size(0)
    if count >= old:
        return torch.repeat_interleave(heads, count // old, dim=0)
    return heads.view(count, old // count, *heads.shape[1:]).mean(1)
