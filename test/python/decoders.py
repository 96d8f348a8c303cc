"""Tiny decoders whose logits depend visibly on every head, position and token."""

from typing import Any

import torch
from torch import Tensor

import mqa
import mqa.config

VOCAB_SIZE = 89

# For inductor, without probing for vector ISAs and precompiling headers: they take g++ a minute.
QUICK_COMPILE = {"cpp.vec_isa_ok": False, "cpp_cache_precompile_headers": False}

QUERY_KEY = ("q_proj", "k_proj", "c_attn", "query_key_value")

# What tells the architectures apart, at the size of `tiny_config`.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt_bigcode": {
        "positions": "learned",
        "norm": "layer",
        "gated": False,
        "activation": "gelu_tanh",
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
    },
    "falcon": {
        "block": "parallel_shared_norm",
        "norm": "layer",
        "gated": False,
        "activation": "gelu",
    },
    "gemma3": {
        "norm": "rms_float32",
        "qk_norm": True,
        "output_norms": True,
        "activation": "gelu_tanh",
        "windows": (5, 0),
        "local_rope_theta": 100.0,
        "rope_scaling": mqa.config.RopeScaling(4.0),
        "attention_scale": 0.5,
        "attention_softcap": 8.0,
        "logit_softcap": 3.0,
        "embedding_scale": 48**0.5,
    },
}


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
        if name.endswith(".bias"):
            weight.data.normal_(0, 0.5, generator=generator)
        elif weight.dim() == 1:
            weight.data.uniform_(0.5, 1.5, generator=generator)
        else:
            gain = 2.0 if any(part in name for part in QUERY_KEY) else 1.0
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
