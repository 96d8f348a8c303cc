"""Where model files keep the weights of a decoder."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mqa.config import DecoderConfig
from mqa.decoder import Decoder

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUTPUT = "lm_head.weight"  # has no prefix


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

    def is_fused(self, name: str) -> bool:
        """Whether `name` is part of one tensor for query, key and value."""
        stored = {self.names.get(projection, projection) for projection in QKV}
        return len(stored) == 1 and projection_of(name) in QKV

    def stored_shape(self, name: str, shape: Sequence[int], config: DecoderConfig) -> list[int]:
        """The shape of the tensor that has what the decoder keeps as `name` in `shape`."""
        if self.is_fused(name):
            num_heads = config.num_heads + 2 * config.num_kv_heads
            return [num_heads * config.head_dim, *shape[1:]]
        return list(shape)

    def from_stored(self, name: str, stored: Tensor, config: DecoderConfig) -> Tensor:
        """What the decoder keeps as `name`."""
        if self.is_fused(name):
            return part_of_fused(stored, config, QKV.index(projection_of(name)))
        if self.turns_neighbours and projection_of(name) in QKV[:2]:
            return halves_from_pairs(stored, config.head_dim)
        if self.norm_offset and is_norm(name):
            return (stored.double() + self.norm_offset).float()
        return stored

    def to_stored(self, name: str, weights: Mapping[str, Tensor], config: DecoderConfig) -> Tensor:
        """What files keep of the decoder's weight `name`, together with those fused with it.

        Reading it gives the same bits.
        """
        if self.is_fused(name):
            kind = name.rsplit(".", 1)[1]
            prefix = name.removesuffix(f"{projection_of(name)}.{kind}")
            return fused([weights[f"{prefix}{part}.{kind}"] for part in QKV], config)
        if self.norm_offset and is_norm(name):
            return weights[name].double() - self.norm_offset  # a float32 has no room for 1e-9 - 1
        return weights[name]


Description = tuple[DecoderConfig, Layout]  # of a model file


def read_weights(
    config: DecoderConfig,
    layout: Layout,
    stored_names: Collection[str],
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Read every tensor of a decoder, one by one; refuse any other.

    Args:
        config: the decoder's.
        layout: where its tensors are.
        stored_names: names of all tensors of the file, without prefix.
        read: gets a tensor by that name.
        dtype: of the weights, but for norms that stay float32.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape.
    """
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in Decoder(config).state_dict().items()}
    names = {name: layout.stored_name(name) for name in shapes}
    missing = sorted(set(names.values()) - set(stored_names))
    if missing:
        raise ValueError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    unknown = sorted(set(stored_names) - set(names.values()))
    if unknown:
        raise ValueError(f"expected no tensor {unknown[0]} in a model of this configuration")
    weights = {}
    for name, shape in shapes.items():
        stored = read(names[name])
        expected = layout.stored_shape(name, shape, config)
        if list(stored.shape) != expected:
            raise ValueError(
                f"expected {names[name]} of shape {expected}, got {list(stored.shape)}"
            )
        stays = config.norm == "rms_float32" and is_norm(name)
        weight = layout.from_stored(name, stored, config)
        weights[name] = weight.to(torch.float32 if stays else dtype)
    return weights


def write_weights(
    config: DecoderConfig, layout: Layout, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of a file, by full name: the inverse of `read_weights`.

    Args:
        config: the decoder's.
        layout: of a Hugging Face folder.
        weights: the decoder's `state_dict`.
    """
    names = {layout.stored_name(name): name for name in weights}
    return {
        stored if stored == OUTPUT else layout.prefix + stored: layout.to_stored(
            name, weights, config
        ).contiguous()
        for stored, name in names.items()
    }


def projection_of(name: str) -> str:
    """`self_attn.q_proj` of `layers.0.self_attn.q_proj.weight`."""
    return name.split(".", 2)[-1].rsplit(".", 1)[0]


def is_norm(name: str) -> bool:
    """Whether the decoder's weight of this name is a norm's."""
    return "norm" in name


def part_of_fused(fused: Tensor, config: DecoderConfig, part: int) -> Tensor:
    """The rows of query (part 0), key (1) or value (2) of a fused projection."""
    groups = fused.view(config.num_kv_heads, -1, config.head_dim, *fused.shape[1:])
    query, key, value = groups[:, :-2], groups[:, -2:-1], groups[:, -1:]
    return (query, key, value)[part].flatten(0, 2)


def fused(parts: Sequence[Tensor], config: DecoderConfig) -> Tensor:
    """The fused projection of query, key and value."""
    shape = (config.num_kv_heads, -1, config.head_dim)
    return torch.cat([part.unflatten(0, shape) for part in parts], 1).flatten(0, 2)


def halves_from_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of a query or key projection that turns neighbours."""
    pairs = weight.view(-1, head_dim // 2, 2, weight.size(1))
    return pairs.transpose(1, 2).flatten(0, 2)
