"""Gemma 1, 2 and 3 (text)."""

from collections.abc import Callable
from typing import Any

from mqa.checkpoints import huggingface
from mqa.checkpoints.fields import Fields
from mqa.checkpoints.layout import Description, Layout
from mqa.config import DecoderConfig

# The norms' weights are stored as what they differ from 1 by.
LAYOUT = Layout(norm_offset=1.0)
LAYOUT_WITH_OUTPUT_NORMS = Layout(
    names={
        "attention_output_norm": "post_attention_layernorm",
        "post_attention_layernorm": "pre_feedforward_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    },
    norm_offset=1.0,
)
TANH: dict[Any, str] = {"gelu_pytorch_tanh": "gelu_tanh"}


def gemma(fields: Fields) -> Description:
    """Gemma 1."""
    # Its first files say "gelu" and mean the approximation, as others say in `hidden_activation`.
    fields.choice("hidden_act", TANH | {"gelu": "gelu_tanh"}, "gelu")
    fields.choice("hidden_activation", TANH | {None: "gelu_tanh"})
    return _config(fields, **huggingface.rope(fields))


def gemma2(fields: Fields) -> Description:
    """Gemma 2: every other layer has a window, scores and logits are capped."""
    types = ["sliding_attention", "full_attention"] * fields.size("num_hidden_layers")
    return _with_output_norms(
        fields,
        types,
        **huggingface.rope(fields),
        attention_softcap=fields.get("attn_logit_softcapping", 50.0),
        logit_softcap=fields.get("final_logit_softcapping", 30.0),
    )


def gemma3(fields: Fields) -> Description:
    """Gemma 3: all but every sixth layer have a window and a rotary embedding of their own."""
    pattern = fields.size("sliding_window_pattern", fields.size("_sliding_window_pattern", 6))
    types = ["sliding_attention"] * (pattern - 1) + ["full_attention"]
    ropes = fields.get("rope_parameters") or {}
    Fields(ropes, {"full_attention", "sliding_attention"}).refuse_unread("a Gemma 3 rope")
    everywhere = (fields.get("rope_scaling") or {}) | (ropes.get("full_attention") or {})
    local = ropes.get("sliding_attention") or {}
    if huggingface.rope_scaling(local) is not None:
        raise ValueError(f"expected an unscaled rotary embedding in windows, got {local}")
    return _with_output_norms(
        fields,
        types * fields.size("num_hidden_layers"),
        rope_theta=everywhere.get("rope_theta") or fields.get("rope_theta", 1e6),
        rope_scaling=huggingface.rope_scaling(everywhere),
        local_rope_theta=local.get("rope_theta") or fields.get("rope_local_base_freq", 1e4),
        qk_norm=True,
    )


CONFIGS: dict[str, Callable[[Fields], Description]] = {
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3_text": gemma3,
}


def gemma_fields(config: DecoderConfig) -> dict[str, Any]:
    """What `gemma` reads, written down."""
    return {
        **huggingface.fields_of_attention(config),
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "rms_norm_eps": config.rms_norm_eps,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": config.output_bias,
    }


def gemma2_fields(config: DecoderConfig) -> dict[str, Any]:
    """What `gemma2` reads, written down."""
    return {
        **gemma_fields(config),
        **huggingface.fields_of_windows(config),
        "query_pre_attn_scalar": round(config.scale**-2),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
    }


def gemma3_fields(config: DecoderConfig) -> dict[str, Any]:
    """What `gemma3` reads, written down."""
    return gemma2_fields(config) | {"rope_local_base_freq": config.local_rope_theta}


def _with_output_norms(fields: Fields, types: list[str], **differences: Any) -> Description:
    num_layers = fields.size("num_hidden_layers")
    window = fields.get("sliding_window", 4096)
    fields.choice("hidden_activation", TANH, "gelu_pytorch_tanh")
    fields.choice("hidden_act", TANH, "gelu_pytorch_tanh")
    return _config(
        fields,
        **differences,
        windows=huggingface.windows(fields, types[:num_layers], window),
        attention_scale=fields.size("query_pre_attn_scalar", 256) ** -0.5,
        output_norms=True,
    )


def _config(fields: Fields, **differences: Any) -> Description:
    sizes = huggingface.sizes(fields)
    bias = bool(fields.get("attention_bias", False))
    config = DecoderConfig(
        **sizes,
        **differences,
        num_kv_heads=fields.size("num_key_value_heads"),
        head_dim=fields.size("head_dim", 256),
        intermediate_size=fields.size("intermediate_size"),
        max_position=fields.size("max_position_embeddings"),
        rms_norm_eps=fields.get("rms_norm_eps", 1e-6),
        norm="rms_float32",
        tie_embeddings=bool(fields.get("tie_word_embeddings", True)),
        eos_token_ids=huggingface.stop_tokens(fields),
        activation="gelu_tanh",
        qkv_bias=bias,
        output_bias=bias,
        embedding_scale=sizes["hidden_size"] ** 0.5,
    )
    return config, LAYOUT_WITH_OUTPUT_NORMS if config.output_norms else LAYOUT
