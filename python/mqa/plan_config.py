"""Reads the numbers that decide a model's cache from a Hugging Face `config.json`.

The field names differ between families, some files leave out what their configuration class has as
default, and some models do not keep one full-length cache per layer. What is assumed is put into
`Model.notes`; what cannot be described by `Model` is refused.
"""

import json
from pathlib import Path
from typing import Any

from mqa.plan import DTYPE_BYTES, Model

Config = dict[str, Any]

NUM_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
NUM_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
NUM_KV_HEADS = (
    "num_key_value_heads",
    "num_kv_heads",
    "n_head_kv",
    "kv_n_heads",
    "multi_query_group_num",
)
HEAD_DIM = ("head_dim", "kv_channels")
HIDDEN_SIZE = ("hidden_size", "n_embd", "d_model")
DTYPE = ("dtype", "torch_dtype")

# Where multimodal files keep the language model, and where MPT and DBRX keep their attention.
LANGUAGE_MODEL = ("text_config", "language_config", "llm_config")
ATTENTION = "attn_config"

# Defaults of configuration classes that published files rely on.
CLASS_DEFAULTS: dict[str, Config] = {
    "falcon": {"multi_query": True},
    "gpt_bigcode": {"multi_query": True},
    "gemma3_text": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256},
}

# Fields of models with recurrent layers, layers that share or lack a cache, or cross-attention.
UNSUPPORTED = (
    "attn_layer_indices",
    "attn_layer_offset",
    "attn_layer_period",
    "block_configs",
    "block_types",
    "cross_attention_layers",
    "full_attention_interval",
    "hybrid_override_pattern",
    "is_encoder_decoder",
    "layers_block_type",
    "num_kv_shared_layers",
    "ssm_cfg",
)
WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")
WINDOWED_LAYERS = {"sliding_attention", "chunked_attention"}


def read_model(path: Path) -> Model:
    """Reads a `config.json`, or the one in the folder `path`.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no model configuration, or one whose cache `Model` cannot describe.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: expected a JSON file, got: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(config).__name__}")
    try:
        return model_from_config(config)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def model_from_config(config: Config) -> Model:
    """The same from the parsed `config.json`."""
    config = _language_model(config)
    _refuse_unsupported(config)
    num_heads = _integer(config, NUM_HEADS)
    num_kv_heads, kv_notes = _num_kv_heads(config, num_heads)
    dims, dim_notes = _head_dims(config, num_heads)
    dtype = str(next((config[name] for name in DTYPE if name in config), ""))
    return Model(
        num_layers=_integer(config, NUM_LAYERS),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        **dims,
        dtype=dtype if dtype in DTYPE_BYTES else None,
        notes=(*kv_notes, *dim_notes, *_window_notes(config)),
    )


def _language_model(config: Config) -> Config:
    """The flat configuration of the language model, without null fields, with class defaults."""
    for name in LANGUAGE_MODEL:
        if isinstance(config.get(name), dict):
            outer_dtype = {key: config[key] for key in DTYPE if key in config}
            config = outer_dtype | config[name]
    if isinstance(config.get(ATTENTION), dict):
        config = config | config[ATTENTION]
    present = {key: value for key, value in config.items() if value is not None}
    return CLASS_DEFAULTS.get(str(present.get("model_type")), {}) | present


def _refuse_unsupported(config: Config) -> None:
    fields = [name for name in UNSUPPORTED if config.get(name)]
    unknown_types = _layer_types(config) - WINDOWED_LAYERS - {"full_attention"}
    if unknown_types:
        fields.append(f"layer_types {', '.join(sorted(unknown_types))}")
    if fields:
        raise ValueError(
            "expected a decoder with one key-value cache per layer, "
            f"got a model with {' and '.join(fields)}"
        )


def _layer_types(config: Config) -> set[str]:
    listed = config.get("layer_types")
    return {str(layer_type) for layer_type in listed} if isinstance(listed, list) else set()


def _num_kv_heads(config: Config, num_heads: int) -> tuple[int, list[str]]:
    # Falcon's new architecture ignores multi_query; ChatGLM's group count needs its switch.
    multi_query = config.get("multi_query") or config.get("attn_type") == "multiquery_attention"
    if multi_query and not config.get("new_decoder_architecture"):
        return 1, []
    if config.get("multi_query_attention") is False:
        return num_heads, []
    if any(name in config for name in NUM_KV_HEADS):
        return _integer(config, NUM_KV_HEADS), []
    return num_heads, ["The file gives no number of KV heads: one per query head is assumed."]


def _head_dims(config: Config, num_heads: int) -> tuple[dict[str, int], list[str]]:
    """The fields `head_dim`, `value_head_dim`, `latent_dim` of `Model`, and notes."""
    if "kv_lora_rank" in config:
        rope_dim = _integer(config, ("qk_rope_head_dim",))
        dims = {
            "head_dim": _integer(config, ("qk_nope_head_dim",)) + rope_dim,
            "value_head_dim": _integer(config, ("v_head_dim",)),
            "latent_dim": _integer(config, ("kv_lora_rank",)) + rope_dim,
        }
        indexer = "The cache of the sparse-attention indexer is not counted."
        return dims, [indexer] if "index_head_dim" in config else []
    if any(name in config for name in HEAD_DIM):
        return {"head_dim": _integer(config, HEAD_DIM)}, []
    hidden_size = _integer(config, HIDDEN_SIZE)
    if hidden_size % num_heads:
        raise ValueError(
            f"expected head_dim, or a hidden size divisible by {num_heads} heads, got {hidden_size}"
        )
    head_dim = hidden_size // num_heads
    note = f"The file gives no head_dim: {hidden_size} / {num_heads} = {head_dim} is assumed."
    return {"head_dim": head_dim}, [note]


def _window_notes(config: Config) -> list[str]:
    if _layer_types(config) == {"full_attention"} or config.get("use_sliding_window") is False:
        return []
    return [
        f"Layers with {name} {config[name]} need fewer slots than shown at longer contexts: "
        "the figures are those of full-length caches."
        for name in WINDOWS
        if config.get(name)
    ]


def _integer(config: Config, names: tuple[str, ...]) -> int:
    """The first of the fields `names` that is present, as a positive integer."""
    name = next((name for name in names if name in config), None)
    if name is None:
        raise ValueError(f"expected a field {' or '.join(names)}, got none")
    value = config[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"expected {name} to be a positive integer, got {value!r}")
    return value
