"""Tiny random models of Hugging Face transformers, so sharp that a wrong mask shows."""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPTBigCodeConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Starcoder2Config,
)

VOCABULARY = 89
WINDOW = 8
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "attention_dropout": 0.0,
}
GATED = {**COMMON, "intermediate_size": 48}
BOTH_KINDS = ["sliding_attention", "full_attention"]


def _llama(heads: int, kv_heads: int) -> LlamaConfig:
    return LlamaConfig(
        **{**GATED, "hidden_size": 8 * heads},
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=16,
    )


def _gpt_bigcode(multi_query: bool) -> GPTBigCodeConfig:
    return GPTBigCodeConfig(
        **COMMON,
        num_attention_heads=4,
        multi_query=multi_query,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


def _falcon(**changes: object) -> FalconConfig:
    options = {**COMMON, "num_attention_heads": 4, "hidden_dropout": 0.0, "bias": False}
    return FalconConfig(**{**options, **changes})


CONFIGS = {
    "gpt_bigcode-mqa": lambda: _gpt_bigcode(multi_query=True),
    "gpt_bigcode-mha": lambda: _gpt_bigcode(multi_query=False),
    "falcon-mqa-71": lambda: _falcon(
        hidden_size=71 * 8, num_attention_heads=71, num_kv_heads=71, ffn_hidden_size=64
    ),
    "falcon-alibi": lambda: _falcon(
        alibi=True, multi_query=False, num_attention_heads=6, hidden_size=48, parallel_attn=False
    ),
    "falcon-new": lambda: _falcon(new_decoder_architecture=True, num_kv_heads=2),
    "gemma": lambda: GemmaConfig(
        **GATED, num_attention_heads=8, num_key_value_heads=1, head_dim=256
    ),
    "gemma2": lambda: Gemma2Config(
        **GATED,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=10.0,
        sliding_window=WINDOW,
        layer_types=BOTH_KINDS,
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **GATED,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=WINDOW,
        layer_types=BOTH_KINDS,
    ),
    "llama-mha": lambda: _llama(4, 4),
    "llama-gqa": lambda: _llama(4, 2),
    "llama-mqa": lambda: _llama(4, 1),
    "llama-group-5": lambda: _llama(10, 2),
    "mistral": lambda: MistralConfig(
        **GATED,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=WINDOW,
    ),
    "qwen3": lambda: Qwen3Config(
        **GATED, num_attention_heads=4, num_key_value_heads=2, head_dim=16
    ),
    "granite": lambda: GraniteConfig(
        **GATED, num_attention_heads=4, num_key_value_heads=2, attention_multiplier=0.6
    ),
    "starcoder2": lambda: Starcoder2Config(
        **GATED,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=WINDOW,
        residual_dropout=0.0,
        embedding_dropout=0.0,
    ),
    "gpt_oss": lambda: GptOssConfig(
        **GATED,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=WINDOW,
        layer_types=BOTH_KINDS,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "deepseek_v3": lambda: DeepseekV3Config(
        **GATED,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=24,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=12,
        moe_intermediate_size=24,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    ),
}
NAMES = list(CONFIGS)
# What to compare with: transformers' own eager attention, except that it adds ALiBi twice.
REFERENCES = {name: "eager" for name in NAMES} | {"falcon-alibi": "sdpa"}


def config(name: str) -> PreTrainedConfig:
    """A new configuration of that name."""
    return CONFIGS[name]()


def model(name: str, attn_implementation: str, seed: int = 0) -> PreTrainedModel:
    """The model of that name with its weights drawn from ``seed``, ready for inference."""
    made = AutoModelForCausalLM.from_config(config(name), attn_implementation=attn_implementation)
    _draw_weights(made, seed)
    made.generation_config.pad_token_id = 0
    made.generation_config.eos_token_id = -1  # generates as many tokens as it is asked for
    return made.eval()


def _draw_weights(made: PreTrainedModel, seed: int) -> None:
    """Weights for which attention is far from uniform, see ``test_attention_is_sharp``."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.dim() == 1 and ("norm" in name or "ln_" in name) and "bias" not in name:
                weight.uniform_(0.8, 1.6, generator=generator)
            elif name.endswith("sinks"):
                weight.uniform_(-1, 2, generator=generator)
            else:
                fan_in = weight.shape[-1]
                weight.normal_(0, 1.4 * fan_in**-0.5, generator=generator)


def tokens(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    """Random token ids [batch, length], without the padding token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (batch, length), generator=generator)
