"""Turns the metadata of a model file into a `DecoderConfig`, or refuses what a decoder lacks.

Nothing is skipped silently: a field that is neither read here, nor has the one value that
`Decoder` implements, nor is known not to matter, is an error unless it is switched off.
"""

from collections.abc import Mapping
from typing import Any

from mqa.config import DecoderConfig, RopeScaling

HF_SIZES = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
}
HF_READ = {
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "tie_word_embeddings",
    "eos_token_id",
    "hidden_act",
    "model_type",
}
HF_IRRELEVANT = {
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "initializer_range",
    "is_llama_config",
    "pad_token_id",
    "pretraining_tp",
    "torch_dtype",
    "transformers_version",
    "transformers.js_config",
    "use_cache",
}
HF_ROPE = {"rope_theta", "rope_type", "type"}
HF_LLAMA3_ROPE = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_position",
}

GGUF_SIZES = {
    "block_count": "num_layers",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_heads",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position",
}
GGUF_READ = {
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "vocab_size",
}
GGUF_STOP_TOKENS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")


def config_from_hf(fields: Mapping[str, Any]) -> DecoderConfig:
    """The configuration in a Hugging Face `config.json`.

    Raises:
        ValueError: a size is missing, or the model is not a plain LLaMA.
    """
    _expect("model_type", fields.get("model_type"), "llama")
    _expect("hidden_act", fields.get("hidden_act", "silu"), "silu")
    _refuse_unknown(fields, HF_SIZES.keys() | HF_READ | HF_IRRELEVANT)
    sizes: dict[str, Any] = {ours: _size(fields, theirs) for theirs, ours in HF_SIZES.items()}
    heads = sizes["num_heads"]
    # `rope_scaling` until transformers 4, `rope_parameters` since.
    rope = (fields.get("rope_scaling") or {}) | (fields.get("rope_parameters") or {})
    stop = fields.get("eos_token_id")
    return DecoderConfig(
        **sizes,
        num_kv_heads=_size(fields, "num_key_value_heads", heads),
        head_dim=_size(fields, "head_dim", sizes["hidden_size"] // heads),
        max_position=_size(fields, "max_position_embeddings", 2048),
        rope_theta=rope.get("rope_theta") or fields.get("rope_theta") or 10000.0,
        rope_scaling=_rope_scaling(rope),
        rms_norm_eps=fields.get("rms_norm_eps", 1e-6),
        tie_embeddings=bool(fields.get("tie_word_embeddings")),
        eos_token_ids=tuple(stop if isinstance(stop, list) else [stop] if stop is not None else []),
    )


def config_from_gguf(fields: Mapping[str, Any], vocab_size: int, tied: bool) -> DecoderConfig:
    """The configuration in the metadata of a GGUF file.

    Args:
        fields: all metadata, by full name.
        vocab_size: rows of the token embedding.
        tied: whether the file has no output matrix of its own.

    Raises:
        ValueError: a size is missing, or the model is not a plain LLaMA.
    """
    _expect("general.architecture", fields.get("general.architecture"), "llama")
    llama = {k.removeprefix("llama."): v for k, v in fields.items() if k.startswith("llama.")}
    _refuse_unknown(llama, GGUF_SIZES.keys() | GGUF_READ)
    sizes: dict[str, Any] = {ours: _size(llama, theirs) for theirs, ours in GGUF_SIZES.items()}
    heads = sizes["num_heads"]
    head_dim = _size(llama, "attention.key_length", sizes["hidden_size"] // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        _expect(name, llama.get(name, head_dim), head_dim)
    return DecoderConfig(
        **sizes,
        num_kv_heads=_size(llama, "attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab_size=vocab_size,
        rope_theta=llama.get("rope.freq_base", 10000.0),
        rms_norm_eps=llama.get("attention.layer_norm_rms_epsilon", 1e-5),
        tie_embeddings=tied,
        eos_token_ids=tuple(fields[name] for name in GGUF_STOP_TOKENS if name in fields),
    )


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        _refuse_unknown(rope, HF_ROPE)
        return None
    _expect("the type of rotary embedding", kind, "llama3")
    _refuse_unknown(rope, HF_ROPE | HF_LLAMA3_ROPE.keys())
    for name in HF_LLAMA3_ROPE.keys() - rope.keys():
        raise ValueError(f"expected the rotary embedding to have a {name}, got none")
    return RopeScaling(**{ours: rope[theirs] for theirs, ours in HF_LLAMA3_ROPE.items()})


def _expect(name: str, value: Any, wanted: Any) -> None:
    if value != wanted:
        raise ValueError(f"expected {name} to be {wanted!r}, got {value!r}")


def _refuse_unknown(fields: Mapping[str, Any], known: set[str]) -> None:
    for name, value in fields.items():
        if name not in known and value:
            raise ValueError(f"expected a plain LLaMA model, got one with {name} = {value!r}")


def _size(fields: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = fields.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"expected {name} to be a positive integer, got {value!r}")
    return value
