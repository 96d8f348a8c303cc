"""The TorchScript file: the same logits after saving and loading, and what it carries."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mqa
from decoders import random_tokens, tiny_decoder

TOKENIZER = json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}})


def run(model: Any) -> torch.Tensor:
    """Logits of a ragged prefill and of four decode steps, `[5, 3, vocab]`."""
    torch.manual_seed(5)
    tokens, lengths = random_tokens(3, 7), torch.tensor([7, 1, 4])
    cache = model.new_cache(3, 12)
    logits = [model.prefill(tokens, lengths, cache)]
    for step in range(4):
        logits.append(model.decode(logits[-1].argmax(-1), lengths + step, cache))
    return torch.stack(logits)


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_saved_model_computes_the_same(
    num_kv_heads: int, tie_embeddings: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = tiny_decoder(num_kv_heads=num_kv_heads, tie_embeddings=tie_embeddings).to(dtype)
    mqa.export_torchscript(model, tmp_path / "tiny.pt")
    loaded = torch.jit.load(tmp_path / "tiny.pt")
    expected = run(model)
    # Several runs: the executor profiles the first, and optimises the later ones.
    for _ in range(3):
        assert torch.equal(run(loaded), expected)


def test_appending_survives_dead_code_elimination_and_freezing(tmp_path: Path) -> None:
    model = tiny_decoder()
    mqa.export_torchscript(model, tmp_path / "tiny.pt")
    methods = ["new_cache", "prefill", "decode"]
    frozen = torch.jit.freeze(torch.jit.load(tmp_path / "tiny.pt").eval(), preserved_attrs=methods)
    for _ in range(3):
        assert torch.equal(run(frozen), run(model))
    for method in ("prefill", "decode"):
        graph = getattr(frozen, method).inlined_graph
        torch._C._jit_pass_dce(graph)
        assert str(graph).count("mqa::kv_append") == model.config.num_layers


def test_the_program_that_loads_it_needs_no_guard_against_autograd(tmp_path: Path) -> None:
    model = tiny_decoder().requires_grad_(True)
    mqa.export_torchscript(model, tmp_path / "tiny.pt")
    with torch.enable_grad():
        logits = run(torch.jit.load(tmp_path / "tiny.pt"))
    assert not logits.requires_grad
    assert all(weight.requires_grad for weight in model.parameters())


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    sizes = {}
    for tied in (True, False):
        model = tiny_decoder(tie_embeddings=tied, vocab_size=5000)
        mqa.export_torchscript(model, tmp_path / "tiny.pt")
        sizes[tied] = (tmp_path / "tiny.pt").stat().st_size
    assert sizes[False] - sizes[True] == pytest.approx(5000 * 48 * 4, rel=0.01)


def test_configuration_and_tokenizer_travel_along(tmp_path: Path) -> None:
    model = tiny_decoder(eos_token_ids=(2, 7)).to(torch.bfloat16)
    template = mqa.ChatTemplate("{{ bos_token }}{{ messages[0].content }}\n光", bos_token="<s>")
    mqa.export_torchscript(
        model, tmp_path / "tiny.pt", tokenizer_json=TOKENIZER, chat_template=template
    )
    files = {"config.json": "", "tokenizer.json": "", "chat.json": ""}
    torch.jit.load(tmp_path / "tiny.pt", _extra_files=files)
    config = json.loads(files["config.json"])
    assert config["dtype"] == "bfloat16"
    assert config["eos_token_ids"] == [2, 7]
    sizes = ("num_layers", "num_heads", "num_kv_heads", "head_dim", "vocab_size", "max_position")
    assert [config[name] for name in sizes] == [2, 6, 2, 8, 89, 64]
    assert json.loads(files["tokenizer.json"]) == json.loads(TOKENIZER)
    assert json.loads(files["chat.json"]) == {"before": "<s>", "after": "\n光"}


def test_a_prompt_longer_than_the_cache_is_refused_by_the_saved_model(tmp_path: Path) -> None:
    mqa.export_torchscript(tiny_decoder(), tmp_path / "tiny.pt")
    loaded = torch.jit.load(tmp_path / "tiny.pt")
    cache = loaded.new_cache(1, 4)
    for tensor in cache:
        tensor.fill_(7.0)
    with pytest.raises(Exception, match=r"kv_append.*positions"):
        loaded.prefill(random_tokens(1, 5), torch.tensor([5]), cache)
    assert all(bool((tensor == 7.0).all()) for tensor in cache)


def test_plain_attention_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"attention_impl 'mqa', got 'torch'"):
        mqa.export_torchscript(tiny_decoder(attention_impl="torch"), tmp_path / "tiny.pt")
    assert not (tmp_path / "tiny.pt").exists()


@pytest.mark.parametrize("text", ["tokenizer.json", "[1, 2]", "{}", "7"])
def test_what_is_no_tokenizer_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected tokenizer_json to be the text of"):
        mqa.export_torchscript(tiny_decoder(), tmp_path / "tiny.pt", tokenizer_json=text)
    assert not (tmp_path / "tiny.pt").exists()
