"""The attention weights of a layer by KV heads, to turn and to merge these."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mqa.config import DecoderConfig
from mqa.merging import Merge


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

    def turned(self, keys: Tensor, values: Tensor) -> "KVHeads":
        """Keys and queries times orthogonal `keys [H_kv, D, D]`, values and outputs times `values`.

        Changes no logit if the rotary embedding, and a norm of keys, commute with `keys`.
        """
        return self.merged(len(keys), Merge(keys, keys), Merge(values, values))

    def merged(self, num_groups: int, keys: Merge, values: Merge) -> "KVHeads":
        """One head for each group of neighbours."""

        def gather(part: Tensor) -> Tensor:
            return part.unflatten(0, (num_groups, -1))

        return KVHeads(
            query=gather(keys.back[:, None] @ self.query).flatten(1, 2),
            key=gather(keys.into @ self.key).sum(1),
            value=gather(values.into @ self.value).sum(1),
            output=gather(values.back[:, None] @ self.output).flatten(1, 2),
        )


def _prefix(layer: int) -> str:
    return f"layers.{layer}.self_attn"
