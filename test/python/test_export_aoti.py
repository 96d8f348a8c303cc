"""The AOTInductor file: computes what the decoder does, in Python and in C++, and what it carries.

Compiling takes seconds, so one file serves all tests of float32.
"""

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from tokenizers import Tokenizer
from torch import Tensor

import mqa
from bpe import train
from decoders import QUICK_COMPILE, tiny_decoder
from programs import generate_command, generate_json, refusal

PROMPT = "The keeper's light, 1899: 光 🎉"
UNTOUCHED = 7.0  # what the caches hold before
Extend = Callable[[Tensor, Tensor, Tensor, list[Tensor]], Tensor]


@torch._inductor.config.patch(QUICK_COMPILE)
def compile_model(model: mqa.Decoder, file: Path, **options: Any) -> Extend:
    mqa.export_aoti(model, file, **options)
    return torch._inductor.aoti_load_package(str(file))


class Compiled:
    """A tiny decoder with random weights and a tokenizer, in Python and as a file."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Tokenizer = train()
        self.model = tiny_decoder(
            vocab_size=self.tokenizer.get_vocab_size(), max_position=128, eos_token_ids=(2, 7)
        )
        self.file = folder / "model.pt2"
        with_gradients = self.model.requires_grad_(True)
        self.extend = compile_model(
            with_gradients,
            self.file,
            tokenizer_json=self.tokenizer.to_str(),
            chat_template=mqa.ChatTemplate("<|im_start|>{{ messages[0].content }}<|im_end|>"),
        )
        self.model.requires_grad_(False)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Parallel loops as short as here mostly wait where other programs run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return Compiled(tmp_path_factory.mktemp("compiled"))


def full_cache(model: mqa.Decoder, batch: int, capacity: int) -> list[Tensor]:
    return [tensor.fill_(UNTOUCHED) for tensor in model.new_cache(batch, capacity)]


def run(
    extend: Extend, model: mqa.Decoder, lengths: list[int], capacity: int, steps: int
) -> tuple[Tensor, Tensor]:
    """Logits of a ragged prefill and of decode steps, `[1 + steps, B, vocab]`, and the caches."""
    torch.manual_seed(5)
    vocab_size, filled = model.config.vocab_size, torch.tensor(lengths)
    cache = full_cache(model, len(lengths), capacity)
    addresses = [tensor.data_ptr() for tensor in cache]
    tokens = torch.randint(vocab_size, (len(lengths), max(lengths)))
    logits = [extend(tokens, filled, torch.zeros_like(filled), cache)]
    for step in range(steps):
        token = torch.randint(vocab_size, (len(lengths), 1))
        logits.append(extend(token, torch.ones_like(filled), filled + step, cache))
    assert [tensor.data_ptr() for tensor in cache] == addresses
    return torch.stack(logits), torch.stack(cache)


@pytest.mark.parametrize(
    ("lengths", "capacity", "steps"),
    [([5, 1, 3], 40, 22), ([1], 23, 22), ([30], 128, 2), ([1, 1], 64, 2), ([2, 9, 9, 4], 33, 2)],
)
def test_one_file_computes_the_same_for_all_sizes(
    lengths: list[int], capacity: int, steps: int, compiled: Compiled
) -> None:
    """To rounding errors: the compiled code sums and fuses in another order."""
    logits, cache = run(compiled.extend, compiled.model, lengths, capacity, steps)
    expected, expected_cache = run(compiled.model.extend, compiled.model, lengths, capacity, steps)
    assert logits.dtype == torch.float32
    assert not logits.requires_grad
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=3e-5)
    torch.testing.assert_close(cache, expected_cache, rtol=1e-5, atol=3e-5)
    # Slots behind the last token, or behind its padding, are as they were.
    assert torch.equal(cache == UNTOUCHED, expected_cache == UNTOUCHED)


def test_bfloat16_errs_as_the_decoder_does(tmp_path: Path) -> None:
    exact = tiny_decoder(num_layers=1, num_kv_heads=1)
    rounded = tiny_decoder(num_layers=1, num_kv_heads=1).to(torch.bfloat16)
    exact.load_state_dict(rounded.state_dict())
    extend = compile_model(rounded, tmp_path / "model.pt2")

    expected, _ = run(exact.extend, exact, [5, 1, 3], 40, steps=22)
    eager, _ = run(rounded.extend, rounded, [5, 1, 3], 40, steps=22)
    logits, cache = run(extend, rounded, [5, 1, 3], 40, steps=22)
    assert cache.dtype == torch.bfloat16
    eager_error = (eager - expected).square().mean().sqrt()
    assert 0 < (logits - expected).square().mean().sqrt() < 1.2 * eager_error


BAD_INPUTS: dict[str, dict[str, int]] = {
    "positions in [0, S - T]": {"capacity": 8},  # a prompt longer than the cache
    "positions in [0, S - T], not before": {"position": -1},
    "positions in [0, S - T], not behind": {"position": 4},
    "lengths in [1, T]": {"length": 10},
    "lengths in [1, T], not 0": {"length": 0},
    "tokens in [0, {vocab_size})": {"token": 10_000},
    "tokens in [0, {vocab_size}), not negative": {"token": -1},
}


@pytest.mark.parametrize("expectation", BAD_INPUTS)
def test_bad_inputs_leave_the_caches_alone(
    expectation: str, compiled: Compiled, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = BAD_INPUTS[expectation]
    cache = full_cache(compiled.model, 2, bad.get("capacity", 12))
    tokens, positions = torch.ones(2, 9, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    lengths = torch.full((2,), 9)
    tokens[1, 4], lengths[1] = bad.get("token", 1), bad.get("length", 9)
    positions[1] = bad.get("position", 0)
    with pytest.raises(RuntimeError) as raised:
        compiled.extend(tokens, lengths, positions, cache)
    # Until torch 2.11 the message of what failed in compiled code goes to stderr only.
    expected = expectation.partition(", not")[0].format(vocab_size=compiled.model.config.vocab_size)
    assert f"extend: expected {expected}" in f"{raised.value}{capfd.readouterr().err}"
    assert all(bool((tensor == UNTOUCHED).all()) for tensor in cache)


def test_configuration_and_tokenizer_travel_along(compiled: Compiled) -> None:
    files = compiled.extend.get_metadata()  # type: ignore[attr-defined]
    config = json.loads(files["config.json"])
    assert config["dtype"] == "float32"
    assert config["eos_token_ids"] == [2, 7]
    assert [config[name] for name in ("num_layers", "num_kv_heads", "head_dim")] == [2, 2, 8]
    assert json.loads(files["tokenizer.json"]) == json.loads(compiled.tokenizer.to_str())


def test_the_threads_are_those_of_the_program(compiled: Compiled) -> None:
    with zipfile.ZipFile(compiled.file) as package:
        (kernels,) = (name for name in package.namelist() if name.endswith("kernel.cpp"))
        source = package.read(kernels).decode()
    assert "omp parallel" in source
    assert "num_threads(" not in source


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    def refuse(sentence: str, model: mqa.Decoder, name: str = "model.pt2", **options: str) -> None:
        with pytest.raises(ValueError, match=f"^export_aoti: expected {sentence}"):
            mqa.export_aoti(model, tmp_path / name, **options)
        assert not list(tmp_path.iterdir())

    model = tiny_decoder()
    refuse("a model with attention_impl 'mqa', got 'torch'", model.with_attention_impl("torch"))
    refuse("a model on the CPU, got one on meta", tiny_decoder().to("meta"))
    refuse(r"a path that ends in .pt2, got .*model\.pt$", model, "model.pt")
    refuse("tokenizer_json to be the text of", model, tokenizer_json="tokenizer.json")


# examples/generate


def test_cpp_generates_the_tokens_of_python(
    compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AOTI_RUNTIME_CHECK_INPUTS", "1")
    result = generate_json(
        compiled.file, prompt=PROMPT, max_new_tokens=40, ignore_eos=True, threads=1
    )
    prompt = compiled.tokenizer.encode(PROMPT).ids
    assert result["prompt_tokens"] == prompt
    assert [result["tokens"]] == mqa.generate(compiled.model, [prompt], 40, stop_tokens=())
    assert len(set(result["tokens"])) > 5
    assert result["text"] == compiled.tokenizer.decode(result["tokens"])
    # Keys and values, 2 layers, 2 heads, 8 floats of 4 bytes.
    assert result["cache_bytes"] == 2 * 2 * 2 * (len(prompt) + 39) * 8 * 4

    options: dict[str, Any] = {
        "max_new_tokens": 8,
        "temperature": 1.2,
        "top_k": 20,
        "top_p": 0.9,
        "seed": 3,
    }
    chat = generate_json(compiled.file, prompt="Who?", chat=True, max_new_tokens=1)
    assert chat["prompt_tokens"] == compiled.tokenizer.encode("<|im_start|>Who?<|im_end|>").ids

    sampled = generate_json(compiled.file, tokens=5, capacity=100, threads=2, **options)
    assert [sampled["tokens"]] == mqa.generate(compiled.model, [[5]], **options)
    assert sampled["cache_bytes"] == 2 * 2 * 2 * 100 * 8 * 4


def test_cpp_refuses_what_does_not_fit(compiled: Compiled) -> None:
    def refuse(**options: Any) -> str:
        return refusal(*generate_command(compiled.file, max_new_tokens=10, **options))

    assert refuse(tokens="1,2,3", capacity=11) == (
        "generate: expected a --capacity of at least 12 for prompt (3) and new tokens (10), got 11"
    )
    assert refuse(tokens=1, kv_heads=1) == (
        "generate: compiled code has fixed --kv-heads: mqa.convert the model before the export"
    )
    assert refuse(tokens=1, cache_dtype="int8") == (
        "generate: compiled code has a fixed --cache-dtype: expected auto, got int8"
    )
    assert "at most 128 slots, the model's max_position, got 129" in refuse(
        tokens=",".join(["1"] * 120)
    )


def without_metadata(package: Path, file: Path) -> None:
    """A copy of `package` that looks like any other AOTInductor model."""
    with zipfile.ZipFile(package) as source, zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("_metadata.json"):
                content = json.dumps({"AOTI_DEVICE_KEY": "cpu"}).encode()
            target.writestr(name, content)


def test_cpp_refuses_other_files(compiled: Compiled, tmp_path: Path) -> None:
    file = tmp_path / "other.pt2"
    file.write_text("no model")
    sentence = f"generate: expected an AOTInductor package in {file}: "
    assert refusal(*generate_command(file, tokens=1)).startswith(sentence)
    mqa.export_torchscript(compiled.model, file)
    assert refusal(*generate_command(file, tokens=1)).startswith(sentence)
    without_metadata(compiled.file, file)
    assert refusal(*generate_command(file, tokens=1)) == (
        f"generate: expected a model exported by mqa.export_aoti, got {file} without config.json"
    )
