"""Tiny decoders whose logits depend visibly on every head, position and token."""

from typing import Any

import torch
from torch import Tensor

import mqa

VOCAB_SIZE = 89


def tiny_config(**changes: Any) -> mqa.DecoderConfig:
    sizes: dict[str, Any] = {
        "num_layers": 2,
        "hidden_size": 48,
        "num_heads": 6,
        "num_kv_heads": 2,
        "head_dim": 8,
        "intermediate_size": 64,
        "vocab_size": VOCAB_SIZE,
        "max_position": 64,
    }
    return mqa.DecoderConfig(**sizes | changes)


def sharpen(model: torch.nn.Module) -> None:
    """Fill the weights such that attention prefers few keys and no two norms are alike."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            weight.data.uniform_(0.5, 1.5, generator=generator)
        else:
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            std = gain if "embed" in name else gain * weight.size(1) ** -0.5
            weight.data.normal_(0, std, generator=generator)


def tiny_decoder(**changes: Any) -> mqa.Decoder:
    model = mqa.Decoder(tiny_config(**changes)).requires_grad_(False)
    sharpen(model)
    return model


def random_tokens(*shape: int) -> Tensor:
    return torch.randint(0, VOCAB_SIZE, shape)


def all_logits(model: mqa.Decoder, tokens: Tensor) -> Tensor:
    """Logits `[B, T, vocab]` of whole sequences."""
    cache = model.new_cache(tokens.size(0), tokens.size(1))
    return model(tokens, torch.zeros(tokens.size(0), dtype=torch.int64), cache)
