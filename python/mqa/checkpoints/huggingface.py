"""Fields that most `config.json` files of Hugging Face share."""

from collections.abc import Mapping, Sequence
from typing import Any

from mqa.checkpoints.fields import Fields
from mqa.config import DecoderConfig, RopeScaling

IRRELEVANT = {
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "cache_implementation",
    "dtype",
    "initializer_range",
    "model_type",
    "pad_token_id",
    "pretraining_tp",
    "torch_dtype",
    "transformers_version",
    "transformers.js_config",
    "use_cache",
}
ROPE = {"rope_theta", "rope_type", "type"}
LLAMA3_ROPE = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_position",
}
ATTENTION_SIZES = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_heads",
    "vocab_size": "vocab_size",
}


def sizes(fields: Fields) -> dict[str, Any]:
    """The sizes that have the same name everywhere."""
    return {ours: fields.size(theirs) for theirs, ours in ATTENTION_SIZES.items()}


def stop_tokens(fields: Fields) -> tuple[int, ...]:
    """`eos_token_id`: none, one, or a list."""
    stop = fields.get("eos_token_id")
    return tuple(stop if isinstance(stop, list) else [] if stop is None else [stop])


def rope(fields: Fields) -> dict[str, Any]:
    """The rotary embedding, as keywords of `DecoderConfig`."""
    # `rope_scaling` until transformers 4, `rope_parameters` since.
    parameters = (fields.get("rope_scaling") or {}) | (fields.get("rope_parameters") or {})
    theta = fields.get("rope_theta", 10000.0)
    return {
        "rope_theta": parameters.get("rope_theta") or theta,
        "rope_scaling": rope_scaling(parameters),
    }


def rope_scaling(parameters: Mapping[str, Any]) -> RopeScaling | None:
    """The scaling that a rotary embedding's parameters ask for."""
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    names = {"default": {}, "linear": {"factor": "factor"}, "llama3": LLAMA3_ROPE}.get(kind)
    if names is None:
        raise ValueError(
            f"expected the type of rotary embedding to be default, linear or llama3, got {kind!r}"
        )
    Fields(parameters, ROPE | names.keys()).refuse_unread(f"a {kind} rotary embedding")
    for name in names.keys() - parameters.keys():
        raise ValueError(f"expected the rotary embedding to have a {name}, got none")
    return RopeScaling(**{ours: parameters[n] for n, ours in names.items()}) if names else None


def windows(fields: Fields, types: Sequence[str], window: int | None) -> tuple[int, ...]:
    """The windows of all layers.

    Args:
        fields: may have `layer_types`.
        types: what they are otherwise.
        window: that of "sliding_attention".
    """
    types = fields.get("layer_types") or types
    sizes = {"full_attention": 0, "sliding_attention": window}
    for kind in types:
        if sizes.get(kind) is None:
            raise ValueError(
                f"expected layer_types to be full_attention or sliding_attention with a "
                f"sliding_window, got {kind!r} with {window!r}"
            )
    return tuple(sizes[kind] or 0 for kind in types)


def fields_of_attention(config: DecoderConfig) -> dict[str, Any]:
    """What `sizes`, `stop_tokens` and `rope` read, written down."""
    return {
        **{theirs: getattr(config, ours) for theirs, ours in ATTENTION_SIZES.items()},
        "max_position_embeddings": config.max_position,
        "tie_word_embeddings": config.tie_embeddings,
        "eos_token_id": field_of_stop_tokens(config),
        "rope_theta": config.rope_theta,
        "rope_scaling": fields_of_scaling(config.rope_scaling),
    }


def field_of_stop_tokens(config: DecoderConfig) -> int | list[int] | None:
    """What `stop_tokens` reads, written down."""
    stop = list(config.eos_token_ids)
    return stop[0] if len(stop) == 1 else stop or None


def fields_of_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """What `rope_scaling` reads, written down."""
    if scaling is None:
        return None
    if scaling.low_freq_factor is None:
        return {"rope_type": "linear", "factor": scaling.factor}
    names = {theirs: getattr(scaling, ours) for theirs, ours in LLAMA3_ROPE.items()}
    return {"rope_type": "llama3", **names}


def fields_of_windows(config: DecoderConfig) -> dict[str, Any]:
    """What `windows` reads, written down."""
    windows = [config.window(layer) for layer in range(config.num_layers)]
    return {
        "sliding_window": max(windows) or None,
        "layer_types": ["sliding_attention" if w else "full_attention" for w in windows],
    }
