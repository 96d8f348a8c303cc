"""GPTBigCode: SantaCoder and StarCoder."""

from typing import Any

from mqa.checkpoints import huggingface
from mqa.checkpoints.fields import Fields
from mqa.checkpoints.layout import Description, Layout
from mqa.config import DecoderConfig

LAYOUT = Layout(
    prefix="transformer.",
    layers="h",
    names={
        "embed_tokens": "wte",
        "embed_positions": "wpe",
        "norm": "ln_f",
        "input_layernorm": "ln_1",
        "self_attn.q_proj": "attn.c_attn",
        "self_attn.k_proj": "attn.c_attn",
        "self_attn.v_proj": "attn.c_attn",
        "self_attn.o_proj": "attn.c_proj",
        "post_attention_layernorm": "ln_2",
        "mlp.up_proj": "mlp.c_fc",
        "mlp.down_proj": "mlp.c_proj",
    },
)
# Dropout, the precision of the softmax, and options of a runner that is no part of the model.
IRRELEVANT = {
    "attention_softmax_in_fp32",
    "attn_pdrop",
    "embd_pdrop",
    "inference_runner",
    "max_batch_size",
    "max_sequence_length",
    "num_key_value_heads",
    "pad_key_length",
    "pre_allocate_kv_cache",
    "resid_pdrop",
    "scale_attention_softmax_in_fp32",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "validate_runner_input",
}
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}


def gpt_bigcode(fields: Fields) -> Description:
    """GPTBigCode, multi-query or not."""
    fields.ignore(IRRELEVANT)
    fields.expect("scale_attn_weights", True)
    hidden_size, heads = fields.size("n_embd"), fields.size("n_head")
    config = DecoderConfig(
        num_layers=fields.size("n_layer"),
        hidden_size=hidden_size,
        num_heads=heads,
        num_kv_heads=1 if fields.get("multi_query", True) else heads,
        head_dim=hidden_size // heads,
        intermediate_size=fields.size("n_inner", 4 * hidden_size),
        vocab_size=fields.size("vocab_size"),
        max_position=fields.size("n_positions"),
        positions="learned",
        norm="layer",
        rms_norm_eps=fields.get("layer_norm_epsilon", 1e-5),
        tie_embeddings=bool(fields.get("tie_word_embeddings", True)),
        eos_token_ids=huggingface.stop_tokens(fields),
        gated=False,
        activation=fields.choice("activation_function", ACTIVATIONS, "gelu_pytorch_tanh"),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
    )
    return config, LAYOUT


def gpt_bigcode_fields(config: DecoderConfig) -> dict[str, Any]:
    """What `gpt_bigcode` reads, written down."""
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    return {
        "n_layer": config.num_layers,
        "n_embd": config.hidden_size,
        "n_head": config.num_heads,
        "n_inner": config.intermediate_size,
        "n_positions": config.max_position,
        "vocab_size": config.vocab_size,
        "multi_query": config.num_kv_heads == 1,
        "layer_norm_epsilon": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "eos_token_id": huggingface.field_of_stop_tokens(config),
        "activation_function": names.get(config.activation),
    }
