"""Loading weights from GGUF files and Hugging Face folders, good and bad ones."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import mqa
from decoders import all_logits, random_tokens, tiny_decoder
from mqa.checkpoints.gguf_files import read_metadata
from mqa.config import RopeScaling

# Rows must be multiples of 32, the block size of quantised tensors.
SIZES = {"hidden_size": 64, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
QUANTISED = {
    "layers.0.mlp.down_proj.weight": gguf.GGMLQuantizationType.Q4_1,
    "layers.1.self_attn.q_proj.weight": gguf.GGMLQuantizationType.Q8_0,
    "layers.1.self_attn.k_proj.weight": gguf.GGMLQuantizationType.F16,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GGUF_NAMES = {
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
    "attention_output_norm": "post_attention_norm",
    "mlp_output_norm": "post_ffw_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    parts = name.removesuffix(".weight").split(".", 2)
    if parts[0] != "layers":
        return f"{GGUF_NAMES[parts[0]]}.weight"
    return f"blk.{parts[1]}.{GGUF_NAMES[parts[2]]}.weight"


def neighbours_from_halves(weight: Tensor) -> Tensor:
    """Rows of a query or key projection in the order of GGUF: rotated pairs are neighbours."""
    order = torch.arange(16).view(2, 8).T.flatten()
    return weight.view(-1, 16, 64)[:, order].reshape(weight.shape)


def write_gguf(
    path: Path,
    model: mqa.Decoder,
    metadata: dict[str, int | float | str] | None = None,
    extra: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    architecture: str = "llama",
) -> dict[str, Tensor]:
    """Write `model`, and return its weights as rounded by the quantisation."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_eos_token_id(7)
    for key, value in (metadata or {}).items():
        adders = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        adders[type(value)](key, value)
    rounded = {}
    for name, weight in model.state_dict().items():
        turned = architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight"))
        array = (neighbours_from_halves(weight) if turned else weight).numpy()
        kind = QUANTISED.get(name, gguf.GGMLQuantizationType.F32)
        packed = gguf.quantize(array, kind)
        if name not in without:
            writer.add_tensor(gguf_name(name), packed, raw_dtype=kind)
        plain = gguf.quantize(weight.numpy(), kind)
        rounded[name] = torch.tensor(gguf.dequantize(plain, kind))
    for name in extra:
        writer.add_tensor(name, np.zeros(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return rounded


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_gguf_gives_the_dequantised_weights(tie_embeddings: bool, tmp_path: Path) -> None:
    model = tiny_decoder(**SIZES, tie_embeddings=tie_embeddings, rope_theta=500.0)
    rounded = write_gguf(tmp_path / "tiny.gguf", model)
    loaded = mqa.load_gguf(tmp_path / "tiny.gguf")
    assert loaded.config.eos_token_ids == (7,)
    assert loaded.config.rope_theta == 500.0
    assert loaded.config.max_position == 64
    assert loaded.state_dict().keys() == rounded.keys()
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, rounded[name]), name
    # Of the weights, those in blocks of 32 were rounded visibly.
    assert not torch.equal(
        rounded["layers.0.mlp.down_proj.weight"], model.layers[0].mlp.down_proj.weight
    )


def test_gguf_means_to_transformers_what_it_means_to_us(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_decoder(**SIZES))
    llama = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    tokens = random_tokens(2, 20)
    loaded = mqa.load_gguf(tmp_path / "tiny.gguf")
    assert_close(all_logits(loaded, tokens), llama(tokens).logits, atol=1e-4, rtol=1e-4)


GEMMA3 = SIZES | {
    "num_layers": 7,
    "num_kv_heads": 1,
    "head_dim": 256,
    "tie_embeddings": True,
    "norm": "rms_float32",
    "qk_norm": True,
    "output_norms": True,
    "activation": "gelu_tanh",
    "windows": (5, 5, 5, 5, 5, 0, 5),
    "rope_theta": 500.0,
    "local_rope_theta": 1e4,
    "embedding_scale": 8.0,
    "eos_token_ids": (7,),
}
GEMMA3_METADATA: dict[str, int | float | str] = {
    "gemma3.attention.key_length": 256,
    "gemma3.attention.value_length": 256,
    "gemma3.attention.sliding_window": 5,
}


def test_a_gemma_3_gguf_means_to_transformers_what_it_means_to_us(tmp_path: Path) -> None:
    model = tiny_decoder(**GEMMA3)
    write_gguf(tmp_path / "tiny.gguf", model, GEMMA3_METADATA, architecture="gemma3")
    gemma = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    loaded = mqa.load(tmp_path / "tiny.gguf")
    assert replace(loaded.config, rms_norm_eps=1e-5) == model.config
    tokens = random_tokens(2, 20)
    assert_close(all_logits(loaded, tokens), gemma(tokens).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (
            {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0},
            {"rope_scaling": RopeScaling(8.0)},
        ),
        ({"gemma3.block_count": 62}, {"attention_scale": 0.25}),  # 27B: of hidden_size / num_heads
    ],
)
def test_larger_gemmas_differ_in_scales(
    metadata: dict[str, int | float | str], expected: dict[str, Any]
) -> None:
    sizes = {
        "general.architecture": "gemma3",
        "gemma3.block_count": 7,
        "gemma3.embedding_length": 64,
        "gemma3.attention.head_count": 4,
        "gemma3.feed_forward_length": 64,
        "gemma3.context_length": 64,
    }
    config, _ = read_metadata(sizes | GEMMA3_METADATA | metadata, vocab_size=89, is_tied=True)
    for name, value in expected.items():
        assert getattr(config, name) == value


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"without": ("layers.1.mlp.up_proj.weight",)},
            "1 tensors are missing.*blk.1.ffn_up.weight",
        ),
        ({"without": ("embed_tokens.weight",)}, "has no tensor token_embd.weight"),
        ({"extra": ("blk.0.attn_q.bias",)}, "expected no tensor blk.0.attn_q.bias"),
        ({"extra": ("rope_freqs.weight",)}, "expected no tensor rope_freqs.weight"),
        (
            {"metadata": {"llama.expert_count": 8}},
            "expected a llama model as Decoder .*, got expert_count = 8",
        ),
        ({"metadata": {"llama.rope.scaling.type": "yarn"}}, "rope.scaling.type = 'yarn'"),
        ({"metadata": {"llama.rope.dimension_count": 8}}, "rope.dimension_count to be 16, got 8"),
        (
            {"metadata": {"llama.attention.key_length": 48}},
            r"expected blk.0.attn_q.weight of shape \[192, 64\], got \[64, 64\]",
        ),
    ],
)
def test_gguf_files_of_other_models_are_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_decoder(**SIZES), **options)
    with pytest.raises(ValueError, match=message) as caught:
        mqa.load_gguf(path)
    assert str(path) in str(caught.value)


def test_an_unknown_quantisation_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError("Dequantization for IQ9_X is not implemented")

    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_decoder(**SIZES))
    monkeypatch.setattr("gguf.dequantize", refuse)
    with pytest.raises(ValueError, match=rf"{path}: tensor \S+: Dequantization for IQ9_X is not"):
        mqa.load_gguf(path)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        lambda path: path.write_bytes(b"GGUF"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("no model at all, just text" * 9),
    ],
)
def test_unreadable_gguf_files_are_refused(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_decoder(**SIZES))
    damage(path)
    with pytest.raises(ValueError, match=r"tiny.gguf is no readable GGUF file"):
        mqa.load_gguf(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"load_gguf: no file .*tiny.gguf"):
        mqa.load_gguf(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hugging Face folder as older versions of transformers wrote it, with a tied model."""
    model = tiny_decoder(tie_embeddings=True)
    weights = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 48,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 89,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "eos_token_id": [3, 5],
        "torch_dtype": "float32",
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    return tmp_path


def change_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    fields = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in fields.items() if value != "absent"}))


def change_weights(folder: Path, **changes: Tensor | None) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file) | {f"model.{name}": weight for name, weight in changes.items()}
    save_file({name: weight for name, weight in weights.items() if weight is not None}, file)


def test_safetensors_give_weights_and_configuration(folder: Path) -> None:
    loaded = mqa.load_safetensors(folder)
    expected = tiny_decoder(tie_embeddings=True, eos_token_ids=(3, 5))
    assert loaded.config == expected.config
    assert loaded.state_dict().keys() == expected.state_dict().keys()
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, expected.state_dict()[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_rounded_to_the_wanted_dtype(dtype: torch.dtype, folder: Path) -> None:
    write_gguf(folder / "tiny.gguf", tiny_decoder(**SIZES))
    for exact, rounded in (
        (mqa.load_safetensors(folder), mqa.load_safetensors(folder, dtype)),
        (mqa.load_gguf(folder / "tiny.gguf"), mqa.load_gguf(folder / "tiny.gguf", dtype)),
    ):
        for name, weight in rounded.state_dict().items():
            assert torch.equal(weight, exact.state_dict()[name].to(dtype)), name


def test_both_spellings_of_rope_scaling_are_read(folder: Path) -> None:
    change_config(folder, rope_theta=500.0, rope_scaling=LLAMA3_ROPE)
    older = mqa.load_safetensors(folder).config
    assert older.rope_theta == 500.0
    assert older.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 32)
    change_config(
        folder,
        rope_theta="absent",
        rope_scaling="absent",
        rope_parameters=LLAMA3_ROPE | {"rope_theta": 500.0},
    )
    assert mqa.load_safetensors(folder).config == older


def test_redundant_tensors_of_older_files_are_left_out(folder: Path) -> None:
    expected = mqa.load_safetensors(folder).state_dict()
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, folder / "model.safetensors")
    assert mqa.load_safetensors(folder).state_dict().keys() == expected.keys()


def shard(folder: Path) -> dict[str, Tensor]:
    """Split the weights into two files with an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    weight_map = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in ("model-0.safetensors", "model-1.safetensors"):
        save_file({n: weights[n] for n in names if weight_map[n] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return weights


def test_shards_are_put_together(folder: Path) -> None:
    weights = shard(folder)
    loaded = mqa.load_safetensors(folder).state_dict()
    for name, weight in weights.items():
        assert torch.equal(loaded[name.removeprefix("model.")], weight), name
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*model-1.safetensors"):
        mqa.load_safetensors(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"index.json has no weight_map"):
        mqa.load_safetensors(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "expected model_type to be one of .*'llama'.*, got 'bert'"),
        ({"model_type": "absent"}, "expected model_type to be one of .*, got None"),
        ({"hidden_act": "gelu"}, "expected hidden_act to be 'silu', got 'gelu'"),
        ({"sliding_window": 4096}, "a llama model as Decoder .*, got sliding_window = 4096"),
        ({"quantization_config": {"bits": 4}}, "got quantization_config = "),
        ({"rope_parameters": {"rope_type": "yarn"}}, "to be default, linear or llama3, got 'yarn'"),
        ({"rope_scaling": {"type": "linear"}}, "to have a factor, got none"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "got partial_rotary_factor = 0.5"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "to have a .*, got none"),
        ({"rope_scaling": LLAMA3_ROPE | {"factor": "big"}}, "expected factor > 0, got 'big'"),
        ({"rope_theta": "big"}, "expected rope_theta > 0, got 'big'"),
        ({"num_hidden_layers": "absent"}, "expected num_hidden_layers to be a positive integer"),
        ({"hidden_size": 48.0}, "expected hidden_size to be a positive integer, got 48.0"),
        ({"num_key_value_heads": 4}, "expected num_kv_heads to divide num_heads = 6, got 4"),
    ],
)
def test_configurations_of_other_models_are_refused(
    changes: dict[str, Any], message: str, folder: Path
) -> None:
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        mqa.load_safetensors(folder)
    assert str(folder / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm.weight": None}, "1 tensors are missing, the first is norm.weight"),
        ({"norm.weight": torch.ones(47)}, r"expected norm.weight of shape \[48\], got \[47\]"),
        (
            {"layers.0.self_attn.q_proj.bias": torch.ones(48)},
            "expected no tensor layers.0.self_attn.q_proj.bias",
        ),
    ],
)
def test_wrong_tensors_are_refused(
    changes: dict[str, Tensor | None], message: str, folder: Path
) -> None:
    change_weights(folder, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        mqa.load_safetensors(folder)
    assert str(folder) in str(caught.value)


def test_damaged_files_are_refused(folder: Path) -> None:
    truncate(folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"cannot read .*model.safetensors"):
        mqa.load_safetensors(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*model.safetensors"):
        mqa.load_safetensors(folder)
    truncate(folder / "config.json")
    with pytest.raises(ValueError, match=r"config.json is no JSON file"):
        mqa.load_safetensors(folder)
    (folder / "config.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"expected an object in .*config.json, got \[1, 2\]"):
        mqa.load_safetensors(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*config.json"):
        mqa.load_safetensors(folder)


def test_load_takes_a_folder_or_a_gguf_file(folder: Path) -> None:
    write_gguf(folder / "tiny.gguf", tiny_decoder(**SIZES))
    assert mqa.load(folder, torch.bfloat16).config.hidden_size == 48
    assert mqa.load(folder / "tiny.gguf").config.hidden_size == 64
    with pytest.raises(ValueError, match=r"load: expected .* a .gguf file, got .*config.json"):
        mqa.load(folder / "config.json")
    with pytest.raises(FileNotFoundError, match=r"load: no file or folder .*missing"):
        mqa.load(folder / "missing")


@pytest.mark.parametrize("load", [mqa.load_gguf, mqa.load_safetensors])
def test_other_dtypes_are_refused(load: Callable[..., mqa.Decoder], folder: Path) -> None:
    with pytest.raises(ValueError, match=r"expected dtype in .*, got torch.int8"):
        load(folder, torch.int8)
