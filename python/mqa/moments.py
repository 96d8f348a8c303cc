"""Second moments of a decoder's keys and values: how alike its KV heads are."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mqa.decoder import Decoder
from mqa.projection import Linear
from mqa.self_attention import Attention


@dataclass(frozen=True)
class Moments:
    """Sums of products of what one layer projects, float64 `[H_kv, D, H_kv, D]`.

    Attributes:
        keys: `sum(key[i, a] * key[j, b])` over tokens, before norm and rotary embedding.
        values: the same of values.
    """

    keys: Tensor
    values: Tensor

    def reordered(self, order: Tensor) -> "Moments":
        """Those of other KV heads first."""
        return Moments(*(m[order][:, :, order] for m in (self.keys, self.values)))


@torch.no_grad()
def moments_of_text(model: Decoder, tokens: Tensor) -> list[Moments]:
    """The moments of every layer over a text.

    Args:
        model: the decoder.
        tokens: int64 `[B, T]`, B pieces of text.

    Raises:
        ValueError: the tokens are fewer than `head_dim`, which leaves directions unseen.
    """
    if tokens.dim() != 2 or tokens.numel() < model.config.head_dim:
        raise ValueError(
            f"convert: expected calibration [B, T] of at least {model.config.head_dim} tokens "
            f"(head_dim), got shape {list(tokens.shape)}"
        )
    size = model.config.num_kv_heads * model.config.head_dim
    sums: list[tuple[Tensor, Tensor]] = []
    hooks = []

    def watch(projection: Linear) -> Tensor:
        total = torch.zeros(size, size, dtype=torch.float64)

        def add(module: Linear, inputs: tuple[Tensor], out: Tensor) -> None:
            rows = out.flatten(0, -2).float()
            total.add_(rows.mT @ rows)

        hooks.append(projection.register_forward_hook(add))
        return total

    for attention in _attentions(model):
        sums.append((watch(attention.k_proj), watch(attention.v_proj)))
    try:
        for piece in tokens.split(1):
            model.hidden(piece, torch.zeros(1, dtype=torch.int64), None)
    finally:
        for hook in hooks:
            hook.remove()
    return [Moments(*(_by_head(total, model) for total in pair)) for pair in sums]


def moments_of_weights(model: Decoder) -> list[Moments]:
    """The moments of every layer for inputs without any direction: those of the weights."""

    def gram(projection: Linear) -> Tensor:
        weight = projection.weight.detach().double()
        return _by_head(weight @ weight.mT, model)

    return [Moments(gram(a.k_proj), gram(a.v_proj)) for a in _attentions(model)]


def unknown_moments(model: Decoder) -> list[Moments]:
    """Moments of every layer that have a shape and no contents, for who does not look at them."""
    heads, head_dim = model.config.num_kv_heads, model.config.head_dim
    nothing = torch.empty(heads, head_dim, heads, head_dim, device="meta")
    return [Moments(nothing, nothing)] * model.config.num_layers


def _attentions(model: Decoder) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]


def _by_head(matrix: Tensor, model: Decoder) -> Tensor:
    heads, head_dim = model.config.num_kv_heads, model.config.head_dim
    return matrix.view(heads, head_dim, heads, head_dim)
