"""GGUF files: LLaMA and Gemma 3."""

from collections.abc import Callable, Mapping
from typing import Any

from mqa.checkpoints.fields import Fields
from mqa.checkpoints.layout import Description, Layout
from mqa.config import DecoderConfig, RopeScaling

NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "attention_output_norm": "post_attention_norm",
    "mlp_output_norm": "post_ffw_norm",
}
STOP_TOKENS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")


def llama(fields: Fields, **sizes: Any) -> Description:
    """LLaMA; its files have query and key in another order."""
    config = DecoderConfig(
        **sizes,
        rope_theta=fields.get("rope.freq_base", 10000.0),
        rms_norm_eps=fields.get("attention.layer_norm_rms_epsilon", 1e-5),
    )
    return config, Layout(layers="blk", names=NAMES, turns_neighbours=True)


def gemma3(fields: Fields, **sizes: Any) -> Description:
    """Gemma 3: what is the same in all its sizes, the files do not say."""
    num_layers, window = sizes["num_layers"], fields.size("attention.sliding_window")
    scaling = fields.choice("rope.scaling.type", {"none": "none", "linear": "linear"}, "none")
    # Queries of the 27B model are scaled for heads of hidden_size / num_heads.
    scaled_for = sizes["hidden_size"] // sizes["num_heads"] if num_layers == 62 else None
    config = DecoderConfig(
        **sizes,
        rope_theta=fields.get("rope.freq_base", 1e6),
        rope_scaling=RopeScaling(fields.get("rope.scaling.factor"))
        if scaling == "linear"
        else None,
        local_rope_theta=1e4,
        rms_norm_eps=fields.get("attention.layer_norm_rms_epsilon", 1e-6),
        norm="rms_float32",
        qk_norm=True,
        output_norms=True,
        activation="gelu_tanh",
        windows=tuple(0 if layer % 6 == 5 else window for layer in range(num_layers)),
        attention_scale=scaled_for and scaled_for**-0.5,
        embedding_scale=sizes["hidden_size"] ** 0.5,
    )
    return config, Layout(layers="blk", names=NAMES)


ARCHITECTURES: dict[str, Callable[..., Description]] = {"llama": llama, "gemma3": gemma3}


def read_metadata(metadata: Mapping[str, Any], vocab_size: int, is_tied: bool) -> Description:
    """Configuration and layout of the model in a GGUF file.

    Args:
        metadata: all of them, by full name.
        vocab_size: rows of the token embedding.
        is_tied: whether the file has no output matrix of its own.

    Raises:
        ValueError: a size is missing, or the model is none that `Decoder` computes.
    """
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise ValueError(
            f"expected general.architecture to be one of {sorted(ARCHITECTURES)}, got {name!r}"
        )
    own = {k.removeprefix(f"{name}."): v for k, v in metadata.items() if k.startswith(f"{name}.")}
    fields = Fields(own, {"vocab_size"})
    hidden_size, heads = fields.size("embedding_length"), fields.size("attention.head_count")
    head_dim = fields.size("attention.key_length", hidden_size // heads)
    for size in ("attention.value_length", "rope.dimension_count"):
        fields.expect(size, head_dim)
    description = ARCHITECTURES[name](
        fields,
        num_layers=fields.size("block_count"),
        hidden_size=hidden_size,
        num_heads=heads,
        num_kv_heads=fields.size("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=fields.size("feed_forward_length"),
        vocab_size=vocab_size,
        max_position=fields.size("context_length"),
        tie_embeddings=is_tied,
        eos_token_ids=tuple(metadata[key] for key in STOP_TOKENS if key in metadata),
    )
    fields.refuse_unread(f"a {name} model")
    return description
