"""Where model files keep the weights of a decoder."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mqa.config import DecoderConfig
from mqa.decoder import Decoder

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


@dataclass(frozen=True)
class Layout:
    """How a family's files name and store what `Decoder` calls `layers.0.mlp.up_proj.weight`.

    Attributes:
        prefix: what names may start with, and need not.
        layers: their word for "layers".
        names: their word for everything between number and "weight", where it is another.
            If query, key and value have the same, they are fused: for every KV head its query
            heads, its key and its value.
        norm_offset: what norms add to the stored weight.
        turns_neighbours: whether the rotary embedding turns the pairs `(2 i, 2 i + 1)` of a head
            together; here they are `(i, i + D / 2)`.
        ignored: ends of names of tensors that repeat what follows from the others.
    """

    prefix: str = "model."
    layers: str = "layers"
    names: Mapping[str, str] = field(default_factory=dict)
    norm_offset: float = 0.0
    turns_neighbours: bool = False
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)

    def stored_name(self, name: str) -> str:
        """Their name, without prefix, of what the decoder calls `name`."""
        stem, kind = name.rsplit(".", 1)
        if not stem.startswith("layers."):
            return f"{self.names.get(stem, stem)}.{kind}"
        _, number, stem = stem.split(".", 2)
        return f"{self.layers}.{number}.{self.names.get(stem, stem)}.{kind}"

    def is_fused(self) -> bool:
        """Whether query, key and value are one tensor."""
        return len({self.names.get(stem, stem) for stem in QKV}) == 1


Description = tuple[DecoderConfig, Layout]  # of a model file


def read_weights(
    config: DecoderConfig,
    layout: Layout,
    stored: Collection[str],
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Read every tensor of a decoder, one by one; refuse any other.

    Args:
        config: the decoder's.
        layout: where its tensors are.
        stored: names of all tensors of the file, without prefix.
        read: gets a tensor by that name.
        dtype: of the weights, but for norms that stay float32.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape.
    """
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in Decoder(config).state_dict().items()}
    names = {name: layout.stored_name(name) for name in shapes}
    missing = sorted(set(names.values()) - set(stored))
    if missing:
        raise ValueError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    unknown = sorted(set(stored) - set(names.values()))
    if unknown:
        raise ValueError(f"expected no tensor {unknown[0]} in a model of this configuration")
    weights = {}
    for name, shape in shapes.items():
        stem = name.split(".", 2)[-1].rsplit(".", 1)[0]
        weight, expected = read(names[name]), list(shape)
        if layout.is_fused() and stem in QKV:
            expected[0] = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        if list(weight.shape) != expected:
            raise ValueError(
                f"expected {names[name]} of shape {expected}, got {list(weight.shape)}"
            )
        if layout.is_fused() and stem in QKV:
            weight = part_of_fused(weight, config, QKV.index(stem))
        if layout.turns_neighbours and stem in QKV[:2]:
            weight = halves_from_pairs(weight, config.head_dim)
        if layout.norm_offset and "norm" in name:
            weight = weight.float() + layout.norm_offset
        stays = config.norm == "rms_float32" and "norm" in name
        weights[name] = weight.to(torch.float32 if stays else dtype)
    return weights


def part_of_fused(fused: Tensor, config: DecoderConfig, part: int) -> Tensor:
    """The rows of query (part 0), key (1) or value (2) of a fused projection."""
    groups = fused.view(config.num_kv_heads, -1, config.head_dim, *fused.shape[1:])
    query, key, value = groups[:, :-2], groups[:, -2:-1], groups[:, -1:]
    return (query, key, value)[part].flatten(0, 2)


def halves_from_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of a query or key projection that turns neighbours."""
    pairs = weight.view(-1, head_dim // 2, 2, weight.size(1))
    return pairs.transpose(1, 2).flatten(0, 2)
