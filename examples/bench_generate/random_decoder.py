"""A decoder of the shape of a model with one billion parameters, with random weights."""

import torch

from mqa import Decoder, DecoderConfig

KV_HEADS = {"MHA": 32, "GQA-8": 8, "MQA": 1}


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


def random_decoder(config: DecoderConfig, dtype: torch.dtype) -> Decoder:
    """A decoder whose activations stay of ordinary size, without a float32 copy in between."""
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in Decoder(config).state_dict().items()}
    weights = {
        name: torch.ones(shape, dtype=dtype)
        if len(shape) == 1
        else torch.empty(shape, dtype=dtype).uniform_(-0.04, 0.04)
        for name, shape in shapes.items()
    }
    return Decoder.from_weights(config, weights)
