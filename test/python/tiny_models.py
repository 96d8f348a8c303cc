"""Tiny models of `transformers` with random weights, one for each family and variant."""

from typing import Any

import transformers
from transformers import PreTrainedModel

from decoders import VOCAB_SIZE, sharpen

SIZES: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 64,
}
GPT_BIGCODE = {"n_layer": 2, "n_embd": 48, "n_head": 6, "n_positions": 64, "vocab_size": VOCAB_SIZE}
FALCON = {
    "num_hidden_layers": 2,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "vocab_size": VOCAB_SIZE,
    "ffn_hidden_size": 64,
}
GEMMA3 = {
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "sliding_window": 7,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "query_pre_attn_scalar": 9,
}
SCALED_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SIZES | {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", SIZES | {"sliding_window": 9}),
    "mistral-all": ("Mistral", SIZES | {"sliding_window": None}),
    "qwen2": (
        "Qwen2",
        SIZES | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", SIZES | {"head_dim": 16}),
    "gemma": ("Gemma", SIZES | {"num_key_value_heads": 1, "head_dim": 16}),
    "gemma2": (
        "Gemma2",
        SIZES
        | {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 9}
        | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0},
    ),
    "gemma3": ("Gemma3", SIZES | GEMMA3),
    "gemma3-scaled": ("Gemma3", SIZES | GEMMA3 | {"rope_parameters": SCALED_ROPE}),
    "gpt_bigcode": ("GPTBigCode", GPT_BIGCODE),
    "gpt_bigcode-mha": ("GPTBigCode", GPT_BIGCODE | {"multi_query": False, "n_inner": 80}),
    "falcon-7b": ("Falcon", FALCON | {"num_attention_heads": 71, "hidden_size": 568}),
    "falcon-mha": ("Falcon", FALCON | {"multi_query": False, "bias": True}),
    "falcon-40b": ("Falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-11b": (
        "Falcon",
        FALCON
        | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
}


def tiny_model(name: str) -> PreTrainedModel:
    """One of `MODELS`, in float32."""
    kind, sizes = MODELS[name]
    stem = kind.removesuffix("ForCausalLM")
    text = "Text" if stem == "Gemma3" else ""
    config = getattr(transformers, f"{stem}{text}Config")(**sizes)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{stem}ForCausalLM")(config).eval().requires_grad_(False)
    sharpen(model)
    return model
