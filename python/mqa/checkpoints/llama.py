"""LLaMA, and those that differ from it in one thing: Mistral, Qwen 2, Qwen 3."""

from collections.abc import Callable
from typing import Any

from mqa.checkpoints import huggingface
from mqa.checkpoints.fields import Fields
from mqa.checkpoints.layout import Description, Layout
from mqa.config import DecoderConfig

LAYOUT = Layout()


def llama(fields: Fields) -> Description:
    """LLaMA."""
    fields.ignore({"is_llama_config"})
    return _config(fields)


def mistral(fields: Fields) -> Description:
    """Mistral: every layer has the same window, or none."""
    window = fields.get("sliding_window", 4096)
    return _config(fields, windows=(window or 0,) * fields.size("num_hidden_layers"))


def qwen2(fields: Fields) -> Description:
    """Qwen 2: biases of query, key and value; the last layers may have a window."""
    return _config(fields, windows=_qwen_windows(fields), qkv_bias=True)


def qwen3(fields: Fields) -> Description:
    """Qwen 3: normalised query and key heads."""
    return _config(fields, windows=_qwen_windows(fields), qk_norm=True)


CONFIGS: dict[str, Callable[[Fields], Description]] = {
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
}


def llama_fields(config: DecoderConfig) -> dict[str, Any]:
    """What `llama` reads, written down."""
    return {
        **huggingface.fields_of_attention(config),
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "rms_norm_eps": config.rms_norm_eps,
        "hidden_act": config.activation,
        "attention_bias": config.output_bias,
        "mlp_bias": config.mlp_bias,
    }


def mistral_fields(config: DecoderConfig) -> dict[str, Any]:
    """What `mistral` reads, written down."""
    return llama_fields(config) | {"sliding_window": config.window(0) or None}


def qwen_fields(config: DecoderConfig) -> dict[str, Any]:
    """What `qwen2` and `qwen3` read, written down."""
    windows = huggingface.fields_of_windows(config)
    is_wanted = windows["sliding_window"] is not None
    return llama_fields(config) | windows | {"use_sliding_window": is_wanted}


def _config(fields: Fields, **differences: Any) -> Description:
    sizes = huggingface.sizes(fields)
    heads = sizes["num_heads"]
    bias = bool(fields.get("attention_bias", False))
    config = DecoderConfig(
        **sizes,
        **huggingface.rope(fields),
        **{"qkv_bias": bias, "output_bias": bias} | differences,
        num_kv_heads=fields.size("num_key_value_heads", heads),
        head_dim=fields.size("head_dim", sizes["hidden_size"] // heads),
        intermediate_size=fields.size("intermediate_size"),
        max_position=fields.size("max_position_embeddings", 2048),
        rms_norm_eps=fields.get("rms_norm_eps", 1e-6),
        tie_embeddings=bool(fields.get("tie_word_embeddings")),
        eos_token_ids=huggingface.stop_tokens(fields),
        activation=fields.choice("hidden_act", {"silu": "silu"}, "silu"),
        mlp_bias=bool(fields.get("mlp_bias", False)),
    )
    return config, LAYOUT


def _qwen_windows(fields: Fields) -> tuple[int, ...]:
    num_layers, first = fields.size("num_hidden_layers"), fields.get("max_window_layers", 28)
    window = fields.get("sliding_window", 4096)
    if not fields.get("use_sliding_window", False):
        window = None
    types = [
        "sliding_attention" if window and layer >= first else "full_attention"
        for layer in range(num_layers)
    ]
    return huggingface.windows(fields, types, window)
