"""`mqa generate`: text, tokens, JSON, refusals, Ctrl-C."""

import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

import bpe
import mqa
from commands import exit_code
from decoders import sharpen, tiny_config
from mqa.tokenizer import load_tokenizer

TEXT = "The keeper climbed"


def save_model(folder: Path, **changes: Any) -> Path:
    """A Hugging Face folder with a tiny LLaMA of the small tokenizer's vocabulary."""
    tokenizer = bpe.train()
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "max_position": 256} | changes
    config = tiny_config(**sizes)
    model = mqa.Decoder(config).requires_grad_(False)
    sharpen(model)
    folder.mkdir()
    fields = {
        "model_type": "llama",
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position,
        "rms_norm_eps": config.rms_norm_eps,
    }
    (folder / "config.json").write_text(json.dumps(fields))
    weights = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    weights["lm_head.weight"] = weights.pop("model.lm_head.weight")
    save_file(weights, folder / "model.safetensors")
    return folder


def save_tokenizer(folder: Path) -> None:
    tokenizer = bpe.train()
    first = tokenizer.token_to_id("<|end|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", first)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|end|>",
        chat_template="{{ bos_token }}<|im_start|>{{ messages[0].content }}<|im_end|>",
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("models") / "tiny")
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a tokenizer."""
    return save_model(tmp_path_factory.mktemp("models") / "bare")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> dict[str, Any]:
        """What `mqa generate --json` answers."""
        assert exit_code("generate", *map(str, arguments), "--json") == 0
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


def test_text_is_what_the_model_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("generate", str(folder), "--prompt", TEXT, "--max-new-tokens", "30") == 0
    out, err = capsys.readouterr()
    tokenizer = load_tokenizer(folder)
    prompt = tokenizer.encode(TEXT)
    (tokens,) = mqa.generate(mqa.load(folder), [prompt], 30)
    assert len(tokens) == 30
    assert out == tokenizer.decode(tokens) + "\n"
    assert re.fullmatch(
        rf"prefill: {len(prompt)} tokens, [\d.e+]+ tokens/s; decode: 29 steps, [\d.e+]+ tokens/s; "
        rf"cache: {2 * 2 * 2 * (len(prompt) + 29) * 8 * 4} bytes\n",
        err,
    )


def test_json_has_the_keys_of_the_cpp_program(folder: Path, run: Any) -> None:
    prompt = load_tokenizer(folder).encode(TEXT)
    result = run(folder, "--prompt", TEXT, "--max-new-tokens", 5)
    assert result["prompt_tokens"] == prompt
    assert len(result["tokens"]) == 5
    assert result["text"] == load_tokenizer(folder).decode(result["tokens"])
    assert result["cache_bytes"] == 2 * 2 * 2 * (len(prompt) + 4) * 8 * 4
    assert result["threads"] == torch.get_num_threads()
    for phase, count in (("prefill", len(prompt)), ("decode", 4)):
        rate = count / result[f"{phase}_seconds"]
        assert result[f"{phase}_tokens_per_second"] == pytest.approx(rate)
    assert len(result) == 9


def test_prompts_come_from_everywhere(
    folder: Path, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(folder)
    expected = run(folder, "--prompt", TEXT, "--max-new-tokens", 5)["tokens"]
    (tmp_path / "prompt.txt").write_text(TEXT, encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    ids = ",".join(map(str, tokenizer.encode(TEXT)))
    for source in (
        ("--prompt-file", tmp_path / "prompt.txt"),
        ("--prompt-file", "-"),
        ("--tokens", ids),
    ):
        assert run(folder, *source, "--max-new-tokens", 5)["tokens"] == expected
    chat = run(folder, "--prompt", TEXT, "--chat", "--max-new-tokens", 5)
    assert chat["prompt_tokens"] == tokenizer.encode_chat(TEXT)
    assert chat["tokens"] != expected


def test_options_are_those_of_generate(folder: Path, run: Any) -> None:
    prompt = load_tokenizer(folder).encode(TEXT)
    model = mqa.load(folder, torch.bfloat16)
    arguments = (folder, "--prompt", TEXT, "--max-new-tokens", 20, "--dtype", "bfloat16")
    sampled = run(
        *arguments, "--temperature", 1.5, "--top-k", 9, "--top-p", 0.9, "--seed", 3, "--threads", 1
    )
    sampling = {"temperature": 1.5, "top_k": 9, "top_p": 0.9, "seed": 3}
    assert [sampled["tokens"]] == mqa.generate(model, [prompt], 20, **sampling)
    multi_query = run(*arguments, "--kv-heads", 1, "--cache-dtype", "int8", "--capacity", 64)
    converted = mqa.convert(model, 1)
    assert [multi_query["tokens"]] == mqa.generate(converted, [prompt], 20, cache_dtype="int8")
    assert multi_query["cache_bytes"] == 2 * 2 * 64 * (8 + 4)  # elements and scales


def test_guesses_change_no_token(folder: Path, run: Any) -> None:
    arguments = (folder, "--prompt", TEXT, "--max-new-tokens", 30)
    expected = run(*arguments)
    by_lookup = run(*arguments, "--prompt-lookup", 3)
    by_model = run(*arguments, "--draft", folder)
    assert by_lookup["tokens"] == by_model["tokens"] == expected["tokens"]
    assert by_model["accepted_tokens"] == by_model["drafted_tokens"] > 20
    assert by_lookup["accepted_tokens"] <= by_lookup["drafted_tokens"]


def test_a_model_without_exact_blocks_is_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mqa.exact_blocks._is_exact", lambda *_: False)
    arguments = ("generate", str(folder), "--prompt", TEXT, "--prompt-lookup", "3")
    assert exit_code(*arguments) == 2
    assert re.fullmatch(
        "mqa generate: with_exact_blocks: expected a model whose blocks have the bits of single "
        r"steps on this machine, got one where blocks of up to \d+ tokens differ\n",
        capsys.readouterr().err,
    )


def test_ends_at_the_end_of_text_unless_told_otherwise(run: Any, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    free = run(folder, "--tokens", "1,2,3", "--max-new-tokens", 8)["tokens"]
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"eos_token_id": free[4]}))
    ended = run(folder, "--tokens", "1,2,3", "--max-new-tokens", 8)["tokens"]
    assert ended == free[: free.index(free[4])]
    ignoring = run(folder, "--tokens", "1,2,3", "--max-new-tokens", 8, "--ignore-eos")["tokens"]
    assert ignoring == free


def test_without_a_tokenizer_tokens_are_printed(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("generate", str(bare), "--tokens", "1,2", "--max-new-tokens", "3") == 0
    out, err = capsys.readouterr()
    (tokens,) = mqa.generate(mqa.load(bare), [[1, 2]], 3)
    assert out == "".join(f"{token} " for token in tokens) + "\n"
    assert err.startswith("mqa generate: prints token ids, for load_tokenizer: no file ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere", "--tokens", "1"], "no file or folder nowhere"),
        (["{bare}", "--prompt", "x"], "tokenizer.json; the prompt can be given as --tokens"),
        (["{folder}", "--prompt-file", "nowhere.txt"], "nowhere.txt: No such file or directory"),
        (["{folder}", "--prompt-file", "{latin}"], "expected UTF-8 text in {latin}"),
        (["{folder}", "--tokens", "1", "--chat"], "expected the prompt as text with --chat"),
        (["{folder}", "--tokens", "99999"], "got 99999 in prompt 0"),
        (["{folder}", "--tokens", "1,,2"], "expected token ids such as 1,2,3, got '1,,2'"),
        (["{folder}", "--tokens", "1,2,3", "--capacity", "2"], "at least 130 slots .*, got 2"),
        (["{folder}", "--tokens", "1", "--max-new-tokens", "300"], r"\(max_position\), .* 300"),
        (["{folder}", "--tokens", "1", "--max-new-tokens", "0"], "expected a positive whole"),
        (["{folder}", "--tokens", "1", "--temperature", "-1"], "a finite number from 0, got '-1'"),
        (["{folder}", "--tokens", "1", "--top-p", "0"], r"a number in \(0, 1\], got '0'"),
        (["{folder}", "--tokens", "1", "--seed", "x"], "a whole number from 0, got 'x'"),
        (["{folder}", "--tokens", "1", "--threads", "0"], "from 1 to 1024, got '0'"),
        (["{folder}", "--tokens", "1", "--kv-heads", "4"], "divide num_heads = 6, got 4"),
        (["{folder}", "--tokens", "1", "--cache-dtype", "int4"], "invalid choice: 'int4'"),
        (["{folder}", "--tokens", "1", "--draft", "nowhere"], "no file or folder nowhere"),
        (["{folder}", "--tokens", "1", "--draft", "x", "--prompt-lookup", "2"], "not allowed with"),
        (["{folder}"], "one of the arguments --prompt --prompt-file --tokens is required"),
        (["{mamba}", "--tokens", "1"], "mamba"),
        (["{broken}", "--tokens", "1"], "no readable GGUF file"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str],
    sentence: str,
    folder: Path,
    bare: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "mamba").mkdir()
    (tmp_path / "mamba/config.json").write_text('{"model_type": "mamba"}')
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    (tmp_path / "latin.txt").write_bytes("Grün".encode("latin-1"))
    places = {
        "folder": folder,
        "bare": bare,
        "latin": tmp_path / "latin.txt",
        "mamba": tmp_path / "mamba",
        "broken": tmp_path / "broken.gguf",
    }
    assert exit_code("generate", *(text.format(**places) for text in arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(sentence.format(**places), err), err
    assert err.startswith("mqa generate: ")
    assert err.count("\n") == 1


def test_ctrl_c_keeps_the_text_and_says_what_it_took(tmp_path: Path) -> None:
    endless = save_model(tmp_path / "endless", max_position=100_000)
    command = [sys.executable, "-m", "mqa", "generate", str(endless), "--tokens", "1,2,3"]
    process = subprocess.Popen(
        [*command, "--max-new-tokens", "90000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # what was read but not asked for would be lost
    )
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate()
    assert process.returncode == 130
    printed, err = [int(token) for token in (first + out).split()], errors.decode()
    assert 1 <= len(printed) < 90000
    assert [printed] == mqa.generate(mqa.load(endless), [[1, 2, 3]], len(printed))
    assert re.search(r"^prefill: 3 tokens, .* cache: \d+ bytes\n\Z", err, re.MULTILINE)
    assert "Traceback" not in err
