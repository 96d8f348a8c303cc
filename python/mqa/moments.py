"""Second moments of a decoder's keys and values: how alike its KV heads are."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mqa.decoder import Decoder
from mqa.projection import Linear
from mqa.self_attention import Attention


@dataclass(frozen=True)
class Moments:
    """Sums of products of what one layer projects, float64.

    Attributes:
        keys: `sum(key[i, a] * key[j, b])` over tokens, before norm and rotary embedding,
            `[H_kv, D, H_kv, D]`.
        values: the same of values.
        queries: `sum(query[a] * query[b])` over tokens and the query heads of each KV head,
            `[H_kv, D, D]`. They say how much an error in a key changes scores.
        outputs: the same of the rows of the output projection, which say it of values.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor
    outputs: Tensor

    def reordered(self, order: Tensor) -> "Moments":
        """Those of other KV heads first."""
        return Moments(
            self.keys[order][:, :, order],
            self.values[order][:, :, order],
            self.queries[order],
            self.outputs[order],
        )


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
    sums: list[Moments] = []
    hooks = []

    def watch(projection: Linear, products: Callable[[Tensor], Tensor]) -> Tensor:
        size = projection.out_features
        total = products(projection.weight.new_zeros(1, size)).double()

        def add(module: Linear, inputs: tuple[Tensor], out: Tensor) -> None:
            total.add_(products(out.flatten(0, -2).float()))

        hooks.append(projection.register_forward_hook(add))
        return total

    def between(rows: Tensor) -> Tensor:
        return _between_heads(rows, model)

    def within(rows: Tensor) -> Tensor:
        return _within_heads(rows, model)

    for a in _attentions(model):
        keys, values = watch(a.k_proj, between), watch(a.v_proj, between)
        sums.append(Moments(keys, values, watch(a.q_proj, within), _of_outputs(a, model)))
    try:
        for piece in tokens.split(1):
            model.hidden(piece, torch.zeros(1, dtype=torch.int64), None)
    finally:
        for hook in hooks:
            hook.remove()
    return sums


def moments_of_weights(model: Decoder) -> list[Moments]:
    """The moments of every layer for inputs without any direction: those of the weights."""

    def rows(projection: Linear) -> Tensor:
        return projection.weight.detach().double().mT

    return [
        Moments(
            _between_heads(rows(a.k_proj), model),
            _between_heads(rows(a.v_proj), model),
            _within_heads(rows(a.q_proj), model),
            _of_outputs(a, model),
        )
        for a in _attentions(model)
    ]


def unknown_moments(model: Decoder) -> list[Moments]:
    """Moments of every layer that have a shape and no contents, for who does not look at them."""
    heads, head_dim = model.config.num_kv_heads, model.config.head_dim
    between = torch.empty(heads, head_dim, heads, head_dim, device="meta")
    within = torch.empty(heads, head_dim, head_dim, device="meta")
    return [Moments(between, between, within, within)] * model.config.num_layers


def _attentions(model: Decoder) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]


def _of_outputs(attention: Attention, model: Decoder) -> Tensor:
    return _within_heads(attention.o_proj.weight.detach().double(), model)


def _between_heads(rows: Tensor, model: Decoder) -> Tensor:
    """Products of keys or values `[N, H_kv * D]`."""
    heads, head_dim = model.config.num_kv_heads, model.config.head_dim
    return (rows.mT @ rows).view(heads, head_dim, heads, head_dim)


def _within_heads(rows: Tensor, model: Decoder) -> Tensor:
    """Products of `[N, H_q * D]` within each query head, summed over those of a KV head."""
    heads, head_dim = model.config.num_kv_heads, model.config.head_dim
    by_head = rows.view(len(rows), heads, -1, head_dim).permute(1, 0, 2, 3).flatten(1, 2)
    return by_head.mT @ by_head
