"""Decoders to measure: shapes of real models, with random weights and random cache contents.

Speed depends on neither.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mqa.config import DecoderConfig
from mqa.decoder import Decoder

# Of 32 query heads; a number behind GQA is that of the KV heads.
KV_HEADS = {"MHA": 32, "GQA-8": 8, "GQA-4": 4, "MQA": 1}


def billion_config(num_kv_heads: int, context: int) -> DecoderConfig:
    """16 layers of width 2048, 32 query heads of 64, a gated feed-forward network of 8192."""
    return DecoderConfig(
        num_layers=16,
        hidden_size=2048,
        num_heads=32,
        num_kv_heads=num_kv_heads,
        head_dim=64,
        intermediate_size=8192,
        vocab_size=32000,
        max_position=context,
        tie_embeddings=True,
    )


def small_config(num_kv_heads: int, context: int) -> DecoderConfig:
    """The heads of `billion_config` in a smaller model, for a quick look."""
    return DecoderConfig(
        num_layers=4,
        hidden_size=1024,
        num_heads=32,
        num_kv_heads=num_kv_heads,
        head_dim=64,
        intermediate_size=2048,
        vocab_size=32000,
        max_position=context,
        tie_embeddings=True,
    )


def growth_config(context: int) -> DecoderConfig:
    """4 layers of width 512, 8 heads of 64: thousands of tokens at once take seconds, not more."""
    return DecoderConfig(
        num_layers=4,
        hidden_size=512,
        num_heads=8,
        num_kv_heads=8,
        head_dim=64,
        intermediate_size=1536,
        vocab_size=8000,
        max_position=context,
        tie_embeddings=True,
    )


def random_decoder(config: DecoderConfig, dtype: torch.dtype) -> Decoder:
    """A decoder whose activations stay of ordinary size, without a float32 copy in between."""
    weights = {
        name: torch.ones(shape, dtype=dtype)
        if len(shape) == 1
        else torch.empty(shape, dtype=dtype).uniform_(-0.04, 0.04)
        for name, shape in _weight_shapes(config).items()
    }
    return Decoder.from_weights(config, weights)


def random_decoders(configs: Mapping[str, DecoderConfig], dtype: torch.dtype) -> dict[str, Decoder]:
    """Decoders that differ in their KV heads alone, in the memory of the one with most of them.

    The key and value projections of the others are its first rows.
    """
    largest = max(configs.values(), key=lambda config: config.num_kv_heads)
    weights = random_decoder(largest, dtype).state_dict()
    return {
        name: Decoder.from_weights(
            config,
            {key: weights[key][: shape[0]] for key, shape in _weight_shapes(config).items()},
        )
        for name, config in configs.items()
    }


def fill_with_random_values(tensors: Sequence[Tensor]) -> None:
    """Fills `[..., H, S, D]`, all heads alike: drawing numbers takes longer than copying them."""
    for tensor in tensors:
        tensor.copy_(torch.randn(tensor.shape[-2:], dtype=tensor.dtype).expand_as(tensor))


def describe(config: DecoderConfig) -> dict[str, int]:
    """What matters of a shape, but for its KV heads."""
    names = ("num_layers", "hidden_size", "num_heads", "head_dim", "intermediate_size")
    return {name: getattr(config, name) for name in (*names, "vocab_size")}


def _weight_shapes(config: DecoderConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: weight.shape for name, weight in Decoder(config).state_dict().items()}
