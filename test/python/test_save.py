"""Saved folders: the same bits for `mqa.load`, the same logits in `transformers`."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import mqa
from decoders import ARCHITECTURES, all_logits, random_tokens, tiny_decoder
from mqa.checkpoints.families import write_config
from mqa.replacing import UNFINISHED, replacing_files
from test_generate_command import save_tokenizer
from tiny_models import MODELS, tiny_model


def assert_same_bits(found: mqa.Decoder, expected: mqa.Decoder) -> None:
    weights = expected.state_dict()
    assert found.state_dict().keys() == weights.keys()
    for name, weight in found.state_dict().items():
        assert weight.dtype == weights[name].dtype, name
        assert torch.equal(weight, weights[name]), name


def load_in_transformers(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


# GPTBigCode has one KV head or all, and nothing between.
@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"gpt_bigcode-mha"}))
def test_a_converted_model_gives_its_logits_in_transformers(name: str, tmp_path: Path) -> None:
    tiny_model(name).save_pretrained(tmp_path / "original")
    original = mqa.load(tmp_path / "original")
    converted = mqa.convert(original, 1)
    assert converted.config.num_kv_heads == 1
    mqa.save(converted, tmp_path / "converted")
    tokens = random_tokens(2, 40)
    theirs = load_in_transformers(tmp_path / "converted")
    assert_close(theirs(tokens).logits, all_logits(converted, tokens), atol=3e-4, rtol=1e-4)
    loaded = mqa.load(tmp_path / "converted")
    assert_same_bits(loaded, converted)
    assert torch.equal(all_logits(loaded, tokens), all_logits(converted, tokens))


def test_more_kv_heads_are_saved_too(tmp_path: Path) -> None:
    tiny_model("gpt_bigcode").save_pretrained(tmp_path / "original")
    all_heads = mqa.convert(mqa.load(tmp_path / "original"), 6)
    mqa.save(all_heads, tmp_path / "all")
    assert json.loads((tmp_path / "all" / "config.json").read_text())["multi_query"] is False
    tokens = random_tokens(2, 40)
    theirs = load_in_transformers(tmp_path / "all")
    assert_close(theirs(tokens).logits, all_logits(all_heads, tokens), atol=3e-4, rtol=1e-4)
    assert_same_bits(mqa.load(tmp_path / "all"), all_heads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_decoder_is_read_back(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_decoder(**ARCHITECTURES[architecture], eos_token_ids=(3, 5)).to(dtype)
    if model.config.norm == "rms_float32":  # as it is loaded
        weights = {n: w.float() if "norm" in n else w for n, w in model.state_dict().items()}
        model = mqa.Decoder.from_weights(model.config, weights)
    mqa.save(model, tmp_path)
    loaded = mqa.load(tmp_path, dtype)
    assert loaded.config == model.config
    assert_same_bits(loaded, model)
    # GPTBigCode has no grouped heads, Falcon always a bias or none, Gemma 3 no cap.
    family = {"llama": "llama", "falcon": "falcon"}.get(architecture, "mqa")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == family


def test_norms_of_gemma_keep_their_last_bits(tmp_path: Path) -> None:
    tiny_model("gemma3").save_pretrained(tmp_path)
    model = mqa.load(tmp_path)
    for name, weight in model.state_dict().items():
        if "norm" in name:
            weight.uniform_(0, 1e-3)  # as far from the stored difference to 1 as training may get
    mqa.save(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gemma3_text"
    assert_same_bits(mqa.load(tmp_path), model)


def test_what_does_not_change_a_model_does_not_change_its_family() -> None:
    config = tiny_decoder().config
    expected = write_config(config)[0]
    for changes in ({"windows": (0, 0)}, {"attention_impl": "torch"}, {"attention_scale": 8**-0.5}):
        assert write_config(replace(config, **changes))[0] == expected
    assert write_config(replace(config, windows=(9, 9)))[0]["model_type"] == "mistral"
    assert write_config(replace(config, windows=(9, 0)))[0]["model_type"] == "mqa"


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    save_tokenizer(source)
    mqa.save(tiny_decoder(), tmp_path / "saved", source)
    for file in source.iterdir():
        assert (tmp_path / "saved" / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(FileNotFoundError, match=r"no file .*saved/x/tokenizer.json"):
        (tmp_path / "saved" / "x").mkdir()
        mqa.save(tiny_decoder(), tmp_path / "other", tmp_path / "saved" / "x")
    assert list((tmp_path / "other").iterdir()) == []


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """What writes more to a file fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    earlier = tiny_decoder()
    mqa.save(earlier, tmp_path)
    later = mqa.convert(earlier, 1)
    with (
        pytest.raises(OSError, match=r"save: cannot write .*model.safetensors \(.*too large"),
        largest_file(20_000),
    ):
        mqa.save(later, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert_same_bits(mqa.load(tmp_path), earlier)
    mqa.save(later, tmp_path)
    assert_same_bits(mqa.load(tmp_path), later)


def test_files_take_the_place_of_others_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("old")
    (tmp_path / "replaced").write_text("old")
    (tmp_path / UNFINISHED).mkdir()
    (tmp_path / UNFINISHED / "left over").write_text("by a process that was killed")
    with replacing_files(tmp_path) as new:
        (new / "replaced").write_text("new")
        assert (tmp_path / "replaced").read_text() == "old"
    found = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert found == {"kept": "old", "replaced": "new"}


def test_weights_in_several_files_are_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"save: expected a folder without other weights, got one"):
        mqa.save(tiny_decoder(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_files_say_their_dtype(tmp_path: Path) -> None:
    mqa.save(tiny_decoder().bfloat16(), tmp_path)
    assert {w.dtype for w in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert load_in_transformers(tmp_path).dtype == torch.bfloat16
