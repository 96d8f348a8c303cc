"""The attention weights of a layer by KV heads, to turn and to merge these."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mqa.config import DecoderConfig


@dataclass(frozen=True)
class KVHeads:
    """Weights of one layer in float64; `in` is hidden_size, and 1 more for a bias.

    Attributes:
        query: `[H_kv, H_q / H_kv, D, in]`.
        key, value: `[H_kv, D, in]`.
        output: `[H_kv, H_q / H_kv, D, hidden_size]`, what follows from each query head's values.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor

    @classmethod
    def read(cls, weights: Mapping[str, Tensor], layer: int, config: DecoderConfig) -> "KVHeads":
        """Takes them from a decoder's weights."""
        prefix, heads = _prefix(layer), config.num_kv_heads
        shape = (heads, -1, config.head_dim)

        def rows(name: str) -> Tensor:
            weight = weights[f"{prefix}.{name}.weight"].double()
            bias = weights.get(f"{prefix}.{name}.bias")
            return weight if bias is None else torch.cat([weight, bias.double()[:, None]], 1)

        return cls(
            query=rows("q_proj").unflatten(0, shape),
            key=rows("k_proj").unflatten(0, shape).squeeze(1),
            value=rows("v_proj").unflatten(0, shape).squeeze(1),
            output=weights[f"{prefix}.o_proj.weight"].double().mT.unflatten(0, shape),
        )

    def write(self, weights: dict[str, Tensor], layer: int) -> None:
        """Puts them into a decoder's weights, rounded to their dtype."""
        prefix = _prefix(layer)

        def put(name: str, value: Tensor) -> None:
            weights[name] = value.to(weights[name].dtype)

        for name, part in (("q_proj", self.query), ("k_proj", self.key), ("v_proj", self.value)):
            rows = part.flatten(0, -2)
            bias = f"{prefix}.{name}.bias"
            if bias in weights:
                put(bias, rows[:, -1])
                rows = rows[:, :-1]
            put(f"{prefix}.{name}.weight", rows)
        put(f"{prefix}.o_proj.weight", self.output.flatten(0, -2).mT)

    def reordered(self, order: Tensor) -> "KVHeads":
        """Other KV heads first, with their query heads; changes no logit."""
        return KVHeads(*(part[order] for part in (self.query, self.key, self.value, self.output)))

    def mapped(self, keys: Tensor | None, values: Tensor | None) -> "KVHeads":
        """Keys and queries times any matrices `keys [H_kv, D, D]`, values times `values`.

        The output projection gets the transposed ones of values, so that orthogonal matrices change
        no logit. For keys that holds if the rotary embedding commutes with them, too.
        """
        heads = self
        if keys is not None:
            heads = replace(heads, query=keys[:, None] @ self.query, key=keys @ self.key)
        if values is not None:
            heads = replace(heads, value=values @ self.value, output=values[:, None] @ self.output)
        return heads

    def merged(self, keys: Tensor, values: Tensor) -> "KVHeads":
        """One head for each row of `keys` and `values [groups, g]`: the sum with these factors."""

        def merge(part: Tensor, factors: Tensor) -> Tensor:
            return torch.einsum("ng,ngij->nij", factors, part.unflatten(0, factors.shape))

        return replace(self, key=merge(self.key, keys), value=merge(self.value, values))


def _prefix(layer: int) -> str:
    return f"layers.{layer}.self_attn"
