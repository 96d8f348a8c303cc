"""Decoders of every family against `transformers`, loaded from the files that it writes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import mqa
from decoders import all_logits, random_tokens
from mqa.checkpoints.families import read_config
from mqa.config import RopeScaling
from tiny_models import MODELS, tiny_model

# The fields of published config.json files that say what the model is.
FALCON_7B: dict[str, Any] = {
    "model_type": "falcon",
    "alibi": False,
    "apply_residual_connection_post_layernorm": False,
    "auto_map": {"AutoConfig": "configuration_falcon.FalconConfig"},
    "bias": False,
    "eos_token_id": 11,
    "hidden_dropout": 0.0,
    "hidden_size": 4544,
    "multi_query": True,
    "new_decoder_architecture": False,
    "num_attention_heads": 71,
    "num_hidden_layers": 32,
    "num_kv_heads": 71,
    "parallel_attn": True,
    "vocab_size": 65024,
}
GEMMA_3_1B: dict[str, Any] = {
    "model_type": "gemma3_text",
    "attn_logit_softcapping": None,
    "cache_implementation": "hybrid",
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
STARCODER: dict[str, Any] = {
    "model_type": "gpt_bigcode",
    "activation_function": "gelu",
    "attn_pdrop": 0.1,
    "inference_runner": 0,
    "multi_query": True,
    "n_embd": 6144,
    "n_head": 48,
    "n_inner": 24576,
    "n_layer": 40,
    "n_positions": 8192,
    "pad_key_length": True,
    "scale_attn_weights": True,
    "summary_first_dropout": 0.1,
    "validate_runner_input": True,
    "vocab_size": 49152,
}
GEMMA_2B: dict[str, Any] = {
    "model_type": "gemma",
    "hidden_act": "gelu",
    "head_dim": 256,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "max_position_embeddings": 8192,
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "vocab_size": 256000,
}
MISTRAL_7B: dict[str, Any] = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
    "vocab_size": 32000,
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = tiny_model(name)
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = mqa.load(tmp_path)
    tokens = random_tokens(2, 40)
    expected = theirs(tokens).logits
    assert expected.std() > 0.1
    for impl in ("mqa", "torch"):
        ours = model.with_attention_impl(impl)
        assert_close(all_logits(ours, tokens), expected, atol=3e-4, rtol=1e-4)
        assert_close(ours.sequence_logits(tokens), expected, atol=3e-4, rtol=1e-4)
    prompt = tokens[:1, :13]
    continued = theirs.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert mqa.generate(model, prompt.tolist(), 12, stop_tokens=()) == continued[:, 13:].tolist()


def test_gemma_rounds_to_bfloat16_where_transformers_does(tmp_path: Path) -> None:
    theirs = tiny_model("gemma3").bfloat16()
    theirs.save_pretrained(tmp_path)
    model = mqa.load(tmp_path, torch.bfloat16)
    tokens = random_tokens(2, 20)
    embedded = theirs.model.embed_tokens(tokens)
    assert torch.equal(model.embed(tokens, tokens), embedded)
    assert model.norm.weight.dtype == torch.float32
    assert torch.equal(model.norm(embedded), theirs.model.norm(embedded))
    spread = (all_logits(model, tokens) - theirs(tokens).logits).abs().mean()
    assert spread < 20 * torch.finfo(torch.bfloat16).eps * theirs(tokens).logits.std()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (FALCON_7B, {"num_kv_heads": 1, "head_dim": 64, "intermediate_size": 18176}),
        (
            GEMMA_3_1B,
            {
                "windows": ((512,) * 5 + (0,)) * 4 + (512, 512),
                "rope_theta": 1000000,
                "local_rope_theta": 10000,
                "eos_token_ids": (1, 106),
                "attention_scale": 1 / 16,
                "embedding_scale": 1152**0.5,
                "tie_embeddings": True,
            },
        ),
        (
            GEMMA_3_1B | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            {"rope_scaling": RopeScaling(8.0)},
        ),
        (STARCODER, {"num_kv_heads": 1, "head_dim": 128, "activation": "gelu"}),
        (GEMMA_2B, {"activation": "gelu_tanh", "windows": (), "attention_scale": None}),
        (MISTRAL_7B, {"windows": (4096,) * 32, "rope_theta": 10000.0}),
        (MISTRAL_7B | {"sliding_window": None}, {"windows": (0,) * 32}),
        (
            MISTRAL_7B
            | {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 28},
            {"windows": (0,) * 28 + (4096,) * 4, "qkv_bias": True, "output_bias": False},
        ),
        (MISTRAL_7B | {"model_type": "qwen3"}, {"windows": (0,) * 32, "qk_norm": True}),
    ],
)
def test_published_configurations_are_read(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    config, _ = read_config(fields)
    for name, value in expected.items():
        assert getattr(config, name) == value, name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (FALCON_7B | {"alibi": True}, "a Falcon with rotary positions, got alibi = True"),
        (FALCON_7B | {"parallel_attn": False}, "parallel attention, got parallel_attn = False"),
        (FALCON_7B | {"activation": "relu"}, "expected activation to be 'gelu', got 'relu'"),
        (
            FALCON_7B | {"apply_residual_connection_post_layernorm": True},
            "a falcon model as Decoder .*, got apply_residual_connection_post_layernorm = True",
        ),
        (STARCODER | {"scale_attn_weights": False}, "scale_attn_weights to be True, got False"),
        (STARCODER | {"add_cross_attention": True}, "got add_cross_attention = True"),
        (GEMMA_2B | {"hidden_act": "silu"}, "hidden_act to be .*, got 'silu'"),
        (GEMMA_3_1B | {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        (GEMMA_3_1B | {"final_logit_softcapping": 30.0}, "got final_logit_softcapping = 30.0"),
        (GEMMA_3_1B | {"layer_types": ["chunked_attention"]}, "got 'chunked_attention'"),
        (GEMMA_3_1B | {"layer_types": ["full_attention"]}, "windows to be empty or 26 numbers"),
        (GEMMA_3_1B | {"sliding_window": None}, "got 'sliding_attention' with None"),
        (
            GEMMA_3_1B | {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}},
            "to have a factor, got none",
        ),
        (
            GEMMA_3_1B
            | {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "expected an unscaled rotary embedding in windows",
        ),
        (MISTRAL_7B | {"layer_types": ["full_attention"]}, "got layer_types = "),
        (MISTRAL_7B | {"model_type": "mixtral"}, "expected model_type to be one of .*'mixtral'"),
    ],
)
def test_variants_that_the_decoder_lacks_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_config(fields)


def test_fused_projections_of_another_size_are_refused(tmp_path: Path) -> None:
    tiny_model("falcon-40b").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    name = "transformer.h.1.self_attention.query_key_value.weight"
    save_file(weights := load_file(file) | {name: load_file(file)[name][:-8].clone()}, file)
    assert weights[name].shape == (72, 48)
    with pytest.raises(ValueError, match=r"h.1.*query_key_value.weight of shape \[80, 48\], got"):
        mqa.load(tmp_path)
