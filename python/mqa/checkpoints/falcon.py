"""Falcon: the layout of Falcon-7B, and the newer one of Falcon-40B and Falcon-11B."""

from typing import Any

from mqa.checkpoints import huggingface
from mqa.checkpoints.fields import Fields
from mqa.checkpoints.layout import Description, Layout
from mqa.config import DecoderConfig

NAMES = {
    "embed_tokens": "word_embeddings",
    "norm": "ln_f",
    "self_attn.q_proj": "self_attention.query_key_value",
    "self_attn.k_proj": "self_attention.query_key_value",
    "self_attn.v_proj": "self_attention.query_key_value",
    "self_attn.o_proj": "self_attention.dense",
    "mlp.up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
}
LAYOUT = Layout(prefix="transformer.", layers="h", names=NAMES)
LAYOUT_WITH_TWO_NORMS = Layout(
    prefix="transformer.",
    layers="h",
    names=NAMES | {"input_layernorm": "ln_attn", "mlp_layernorm": "ln_mlp"},
)


def falcon(fields: Fields) -> Description:
    """Falcon with rotary positions and parallel attention."""
    fields.ignore({"hidden_dropout"})
    sizes = huggingface.sizes(fields)
    hidden_size, heads = sizes["hidden_size"], sizes["num_heads"]
    is_new = bool(fields.get("new_decoder_architecture"))
    if fields.get("alibi"):
        raise ValueError("expected a Falcon with rotary positions, got alibi = True")
    if not fields.get("parallel_attn", True) and not is_new:
        raise ValueError("expected a Falcon with parallel attention, got parallel_attn = False")
    # Falcon-7B says 71 KV heads here, and has one.
    num_kv_heads = fields.size("num_kv_heads", heads)
    if fields.get("multi_query", True) and not is_new:
        num_kv_heads = 1
    num_norms = fields.size("num_ln_in_parallel_attn", 2 if is_new else 1)
    bias = bool(fields.get("bias"))
    config = DecoderConfig(
        **sizes,
        **huggingface.rope(fields),
        num_kv_heads=num_kv_heads,
        head_dim=hidden_size // heads,
        intermediate_size=fields.size("ffn_hidden_size", 4 * hidden_size),
        max_position=fields.size("max_position_embeddings", 2048),
        norm="layer",
        rms_norm_eps=fields.get("layer_norm_epsilon", 1e-5),
        tie_embeddings=bool(fields.get("tie_word_embeddings", True)),
        eos_token_ids=huggingface.stop_tokens(fields),
        block="parallel" if is_new and num_norms == 2 else "parallel_shared_norm",
        gated=False,
        activation=fields.choice("activation", {"gelu": "gelu"}, "gelu"),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
    )
    return config, LAYOUT if config.block == "parallel_shared_norm" else LAYOUT_WITH_TWO_NORMS


def falcon_fields(config: DecoderConfig) -> dict[str, Any]:
    """What `falcon` reads, written down; only the newer layout has any number of KV heads."""
    return {
        **huggingface.fields_of_attention(config),
        "new_decoder_architecture": True,
        "num_ln_in_parallel_attn": 2 if config.block == "parallel" else 1,
        "num_kv_heads": config.num_kv_heads,
        "ffn_hidden_size": config.intermediate_size,
        "layer_norm_epsilon": config.rms_norm_eps,
        "activation": config.activation,
        "bias": config.output_bias,
    }
