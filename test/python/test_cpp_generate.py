"""The C++ program that runs an exported model: its tokens, its text and its refusals."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

import mqa
from bpe import BYTE_TOKENS, BYTES_ONLY, CHARACTER_TOKENIZERS, MARK, train
from decoders import tiny_decoder
from programs import generate_command, generate_json, program, refusal

PROMPT = "The keeper's light, 1899: 光 🎉"
NEW_TOKENS = 40
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.7, "seed": 3},
    "top_k": {"temperature": 1.5, "top_k": 5, "seed": 4},
    "top_p": {"temperature": 1.5, "top_p": 0.8, "seed": 5},
    "all": {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "seed": 2**60},
}


class Exported:
    """A tiny decoder with random weights and a tokenizer, in Python and as a file."""

    def __init__(
        self,
        folder: Path,
        num_kv_heads: int = 2,
        max_position: int = 128,
        *,
        tokenizer: Tokenizer | None = None,
        chat_template: mqa.ChatTemplate | None = None,
        **changes: Any,
    ) -> None:
        self.tokenizer: Tokenizer = tokenizer or train()
        self.vocab_size = self.tokenizer.get_vocab_size()
        self.model = tiny_decoder(
            vocab_size=self.vocab_size,
            max_position=max_position,
            num_kv_heads=num_kv_heads,
            **changes,
        )
        self.prompt: list[int] = self.tokenizer.encode(PROMPT).ids
        self.file = folder / "model.pt"
        mqa.export_torchscript(self.model, self.file, self.tokenizer.to_str(), chat_template)

    def expected(self, **options: Any) -> list[int]:
        (tokens,) = mqa.generate(self.model, [self.prompt], NEW_TOKENS, **options)
        return tokens


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("exported"))


def run(model: Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(generate_command(model, **options), capture_output=True, check=True)


def refuse(model: Path, **options: Any) -> str:
    return refusal(*generate_command(model, **options))


@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
def test_greedy_tokens_are_those_of_python(num_kv_heads: int, tmp_path: Path) -> None:
    exported = Exported(tmp_path, num_kv_heads)
    result = generate_json(exported.file, prompt=PROMPT, max_new_tokens=NEW_TOKENS)
    assert result["prompt_tokens"] == exported.prompt
    assert result["tokens"] == exported.expected()
    assert len(set(result["tokens"])) > 5
    # Keys and values, 2 layers, 8 floats of 4 bytes; the last token never enters the cache.
    slots = len(exported.prompt) + NEW_TOKENS - 1
    assert result["cache_bytes"] == 2 * 2 * num_kv_heads * slots * 8 * 4


@pytest.mark.parametrize("sampling", SAMPLING)
def test_sampled_tokens_are_those_of_python(sampling: str, exported: Exported) -> None:
    options = SAMPLING[sampling]
    result = generate_json(exported.file, prompt=PROMPT, max_new_tokens=NEW_TOKENS, **options)
    assert result["tokens"] == exported.expected(**options)


def test_a_seed_repeats_and_another_differs(exported: Exported) -> None:
    first, again, other = (
        generate_json(
            exported.file, prompt=PROMPT, temperature=1, seed=seed, max_new_tokens=NEW_TOKENS
        )
        for seed in (1, 1, 2)
    )
    assert first["tokens"] == again["tokens"] != other["tokens"]


def test_the_ways_to_give_a_prompt_agree(exported: Exported, tmp_path: Path) -> None:
    prompt_file = tmp_path / "prompt.txt"
    prompt_file.write_text(PROMPT, encoding="utf-8")
    ids = ",".join(map(str, exported.prompt))
    results = [
        generate_json(exported.file, max_new_tokens=5, **prompt)
        for prompt in ({"prompt": PROMPT}, {"prompt_file": prompt_file}, {"tokens": ids})
    ]
    from_stdin = generate_command(exported.file, prompt_file="-", max_new_tokens=5, json=True)
    answer = subprocess.run(from_stdin, input=PROMPT.encode(), capture_output=True, check=True)
    results.append(json.loads(answer.stdout))
    for result in results:
        assert result["prompt_tokens"] == exported.prompt
        assert result["tokens"] == exported.expected()[:5]


def test_text_is_what_the_tokens_decode_to_and_is_streamed(exported: Exported) -> None:
    """Random tokens cut characters anywhere: the stream must still be whole characters."""
    options = {"prompt": PROMPT, "temperature": 3, "max_new_tokens": 90}
    result = generate_json(exported.file, **options)
    assert result["text"] == exported.tokenizer.decode(result["tokens"])
    assert "\ufffd" in result["text"]
    streamed = run(exported.file, **options)
    assert streamed.stdout.decode() == result["text"] + "\n"
    assert re.fullmatch(
        rb"prefill: \d+ tokens, \S+ tokens/s; decode: 89 steps, \S+ tokens/s; cache: \d+ bytes\n",
        streamed.stderr,
    )


def test_text_that_ends_within_a_character(exported: Exported) -> None:
    decode = exported.tokenizer.decode
    continuation_byte = exported.tokenizer.token_to_id(BYTES_ONLY.pre_tokenize_str("\x80")[0][0][1])

    def is_cut(tokens: list[int]) -> bool:
        """Whether one more continuation byte would not be one more damaged character."""
        text, longer = decode(tokens), decode([*tokens, continuation_byte])
        return text[-1] == "\ufffd" and longer.count("\ufffd") == text.count("\ufffd")

    options = {"prompt": PROMPT, "temperature": 3, "max_new_tokens": 90}
    tokens = generate_json(exported.file, **options)["tokens"]
    length = next(n for n in range(1, 90) if is_cut(tokens[:n]))
    result = generate_json(exported.file, **options | {"max_new_tokens": length})
    assert result["text"] == decode(tokens[:length])


def test_text_of_byte_tokens(tmp_path: Path) -> None:
    """Whole characters as soon as their bytes are there; damaged bytes spare those beside them."""
    tokenizer = CHARACTER_TOKENIZERS["llama2"]()
    exported = Exported(tmp_path, tokenizer=tokenizer)
    options = {"prompt": PROMPT, "temperature": 2, "max_new_tokens": 90, "seed": 5}
    result = generate_json(exported.file, **options)
    added = tokenizer.get_added_tokens_decoder()
    tokens = [
        tokenizer.id_to_token(token)
        for token in result["tokens"]
        if token not in added or not added[token].special
    ]
    text = b"".join(
        bytes([BYTE_TOKENS.index(token)]) if token in BYTE_TOKENS else token.encode()
        for token in tokens
    ).decode(errors="replace")
    assert "\ufffd" in text
    assert result["text"] == text.replace(MARK, " ").removeprefix(" ")
    assert run(exported.file, **options).stdout.decode() == result["text"] + "\n"


CHAT_TEMPLATE = mqa.ChatTemplate(
    "{{ bos_token }}<|im_start|>user\n{{ messages[0].content }}<|im_end|>\n<|im_start|>model\n",
    bos_token="<bos>",
)


def test_chat(tmp_path: Path) -> None:
    tokenizer = CHARACTER_TOKENIZERS["gemma"]()
    exported = Exported(tmp_path, tokenizer=tokenizer, chat_template=CHAT_TEMPLATE)
    assert exported.prompt.count(tokenizer.token_to_id("<bos>")) == 1  # without the chat as well
    rendered = CHAT_TEMPLATE.render([{"role": "user", "content": PROMPT}])
    expected = tokenizer.encode(rendered, add_special_tokens=False).ids
    result = generate_json(exported.file, prompt=PROMPT, chat=True, max_new_tokens=5)
    assert result["prompt_tokens"] == expected
    assert expected.count(tokenizer.token_to_id("<bos>")) == 1
    assert [result["tokens"]] == mqa.generate(exported.model, [expected], 5)
    assert generate_json(exported.file, prompt=PROMPT, max_new_tokens=5)["prompt_tokens"] == (
        exported.prompt
    )


def test_chat_that_cannot_be(exported: Exported) -> None:
    assert refuse(exported.file, prompt=PROMPT, chat=True) == (
        "generate: the model has no chat template: leave out --chat, or export it with one"
    )
    assert refuse(exported.file, tokens=1, chat=True) == "generate: --chat excludes --tokens"


@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
def test_kv_heads_are_converted_as_in_python(num_kv_heads: int, exported: Exported) -> None:
    options = {"temperature": 1.0, "seed": 6}
    converted = mqa.convert(exported.model, num_kv_heads)
    result = generate_json(
        exported.file, prompt=PROMPT, max_new_tokens=NEW_TOKENS, kv_heads=num_kv_heads, **options
    )
    assert [result["tokens"]] == mqa.generate(converted, [exported.prompt], NEW_TOKENS, **options)
    slots = len(exported.prompt) + NEW_TOKENS - 1
    assert result["cache_bytes"] == 2 * 2 * num_kv_heads * slots * 8 * 4


@pytest.mark.parametrize("num_kv_heads", [3, 4, 12])
def test_other_numbers_of_kv_heads_are_refused(num_kv_heads: int, exported: Exported) -> None:
    assert refuse(exported.file, prompt=PROMPT, kv_heads=num_kv_heads) == (
        "generate: expected a number of --kv-heads that divides the 6 query heads, and divides 2 "
        f"or is a multiple of it, got {num_kv_heads}"
    )


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_caches_of_8_bits(dtype: str, exported: Exported) -> None:
    result = generate_json(
        exported.file, prompt=PROMPT, max_new_tokens=NEW_TOKENS, cache_dtype=dtype, kv_heads=1
    )
    model = mqa.convert(exported.model, 1)
    slots = len(exported.prompt) + NEW_TOKENS - 1
    cache = model.new_cache(1, slots, dtype)
    logits = model.prefill(
        torch.tensor([exported.prompt]), torch.tensor([len(exported.prompt)]), cache
    )
    tokens = [int(logits.argmax())]
    for position in range(len(exported.prompt), slots):
        logits = model.decode(torch.tensor(tokens[-1:]), torch.tensor([position]), cache)
        tokens.append(int(logits.argmax()))
    assert result["tokens"] == tokens
    # Keys and values, 2 layers, 8 elements of a byte and a scale of 4.
    assert result["cache_bytes"] == 2 * 2 * slots * (8 + 4)


def catches_interrupt(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process has a handler for SIGINT."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (mask,) = re.findall(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)
    return bool(int(mask, 16) >> (signal.SIGINT - 1) & 1)


def interrupt(process: subprocess.Popen[bytes], *, caught: bool) -> None:
    """Send SIGINT once the process has a handler for it, or has none any more."""
    deadline = time.monotonic() + 30
    while catches_interrupt(process) != caught:
        assert time.monotonic() < deadline, f"the handler: expected {caught}"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A model that goes on for longer than any test."""
    return Exported(tmp_path_factory.mktemp("endless"), max_position=200_000)


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interrupt_ends_the_generation(as_json: bool, endless: Exported) -> None:
    options = {"prompt": PROMPT, "temperature": 1, "max_new_tokens": 100_000}
    command = generate_command(endless.file, **options, **({"json": True} if as_json else {}))
    pipe = subprocess.PIPE
    # Unbuffered: `communicate` would not see what `read` took in advance.
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, bufsize=0) as process:
        assert process.stdout is not None
        begin = b"" if as_json else process.stdout.read(20)  # text comes while it generates
        interrupt(process, caught=True)
        rest, summary = process.communicate(timeout=60)
    assert process.returncode == 130
    output = (begin + rest).decode()
    if as_json:
        result = json.loads(output)
        assert summary == b""
        assert result["text"] == endless.tokenizer.decode(result["tokens"])
        assert len(result["tokens"]) < 100_000
        return
    assert output.endswith("\n")
    (steps,) = re.findall(rb"^prefill: .*; decode: (\d+) steps, .* cache: \d+ bytes\n$", summary)
    whole = generate_json(endless.file, **options | {"max_new_tokens": int(steps)})
    assert output == whole["text"] + "\n"


def test_a_second_interrupt_ends_the_program(endless: Exported) -> None:
    ids = ",".join(["1"] * 8_000)  # the first one waits for the prompt
    with subprocess.Popen(
        generate_command(endless.file, tokens=ids), stdout=subprocess.PIPE
    ) as process:
        interrupt(process, caught=True)
        interrupt(process, caught=False)
        assert process.communicate(timeout=60)[0] == b""
    assert process.returncode == -signal.SIGINT


def test_generation_ends_at_an_end_of_text_token(exported: Exported, tmp_path: Path) -> None:
    free = exported.expected()
    stop = next(token for token in free[3:] if token not in free[:3])
    stopping = Exported(tmp_path, eos_token_ids=(stop,))
    options = {"prompt": PROMPT, "max_new_tokens": NEW_TOKENS}
    assert generate_json(stopping.file, **options)["tokens"] == free[: free.index(stop)]
    assert generate_json(stopping.file, ignore_eos=True, **options)["tokens"] == free


def test_rates_follow_from_seconds(exported: Exported) -> None:
    result = generate_json(exported.file, prompt=PROMPT, max_new_tokens=5)
    prefill, decode = result["prefill_seconds"], result["decode_seconds"]
    assert result["prefill_tokens_per_second"] == pytest.approx(len(exported.prompt) / prefill)
    assert result["decode_tokens_per_second"] == pytest.approx(4 / decode)
    assert generate_json(exported.file, prompt=PROMPT, max_new_tokens=1)["decode_seconds"] == 0


def test_capacity_and_threads_leave_the_tokens_alone(exported: Exported) -> None:
    options = {"prompt": PROMPT, "max_new_tokens": NEW_TOKENS}
    result = generate_json(exported.file, capacity=100, threads=3, **options)
    assert result["tokens"] == exported.expected()
    assert result["cache_bytes"] == 2 * 2 * 2 * 100 * 8 * 4
    assert result["threads"] == 3


def test_without_a_tokenizer_tokens_go_in_and_out(exported: Exported, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    mqa.export_torchscript(exported.model, file)
    ids = ",".join(map(str, exported.prompt))
    expected = "".join(f"{token} " for token in exported.expected()[:5])
    assert run(file, tokens=ids, max_new_tokens=5).stdout.decode() == expected + "\n"
    assert refuse(file, prompt="x") == (
        "generate: the model has no tokenizer: give the prompt as --tokens"
    )


def test_version_and_help() -> None:
    def answer(flag: str) -> str:
        return subprocess.run(
            [program("generate"), flag], capture_output=True, check=True, text=True
        ).stdout

    assert re.fullmatch(r"\d+\.\d+\.\d+\n", answer("--version"))
    assert "--max-new-tokens" in answer("--help")


BAD_OPTIONS: dict[str, dict[str, Any]] = {
    "--max-new-tokens: expected a whole number from 1, got 0": {"max_new_tokens": 0},
    "--max-new-tokens: expected a whole number from 1, got 1.5": {"max_new_tokens": 1.5},
    "expected a whole number from 1, got 9223372036854775807": {"max_new_tokens": 2**63 - 1},
    "--temperature: expected a finite number from 0, got nan": {"temperature": "nan"},
    "--temperature: expected a finite number from 0, got -1": {"temperature": -1},
    "--top-k: expected a whole number from 1, got 0": {"top_k": 0},
    "--top-p: expected a number in (0, 1], got 0": {"top_p": 0},
    "--top-p: expected a number in (0, 1], got 1.01": {"top_p": 1.01},
    "--seed: expected a whole number from 0, got -1": {"seed": -1},
    "--capacity: expected a whole number from 1, got 0": {"capacity": 0},
    "--threads: expected a whole number from 1 to 1024, got 0": {"threads": 0},
    "--threads: expected a whole number from 1 to 1024, got 1025": {"threads": 1025},
    "--kv-heads: expected a whole number from 1, got 0": {"kv_heads": 0},
    "--cache-dtype: int4 not in {auto,int8,float8_e4m3fn}": {"cache_dtype": "int4"},
    "not expected: --beams": {"beams": True},
    "Exactly 1 option from [--prompt,--prompt-file,--tokens] is required": {"tokens": "1,2"},
    "--prompt-file: File does not exist: nowhere.txt": {"prompt_file": "nowhere.txt"},
}


@pytest.mark.parametrize("sentence", BAD_OPTIONS)
def test_bad_options_are_refused(sentence: str, exported: Exported) -> None:
    assert sentence in refuse(exported.file, prompt=PROMPT, **BAD_OPTIONS[sentence])


def test_bad_prompts_are_refused(exported: Exported, tmp_path: Path) -> None:
    file, size = exported.file, exported.vocab_size
    assert "Exactly 1 option" in refuse(file)
    assert "at least one token, got an empty one" in refuse(file, prompt="")
    assert f"expected tokens in [0, {size}), got {size}" in refuse(file, tokens=f"1,{size}")
    for tokens, bad in (("1,-1", "-1"), ("1,x", "x"), ("", "")):
        sentence = f"generate: --tokens: expected a whole number from 0, got {bad}"
        assert refuse(file, tokens=tokens) == sentence
    latin1 = tmp_path / "latin1.txt"
    latin1.write_bytes("naïf".encode("latin-1"))
    assert "expected the text to be valid UTF-8" in refuse(file, prompt_file=latin1)


def test_a_prompt_that_does_not_fit_is_refused(exported: Exported) -> None:
    needed, length = len(exported.prompt) + 9, len(exported.prompt)
    options = {"prompt": PROMPT, "max_new_tokens": 10}
    assert refuse(exported.file, capacity=needed - 1, **options) == (
        f"generate: expected a --capacity of at least {needed} for prompt ({length}) "
        f"and new tokens (10), got {needed - 1}"
    )
    assert len(generate_json(exported.file, capacity=needed, **options)["tokens"]) == 10
    ids = ",".join(["1"] * 120)
    assert refuse(exported.file, tokens=ids, max_new_tokens=10) == (
        "generate: expected a cache of at most 128 slots, the model's max_position, got 129 "
        "for prompt (120) and new tokens (10)"
    )


class Identity(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class FailingModel(torch.nn.Module):
    """Has the methods of an exported decoder, but its prefill fails."""

    @torch.jit.export
    def new_cache(self, batch: int, capacity: int) -> list[Tensor]:
        return [torch.zeros(batch, capacity)]

    @torch.jit.export
    def prefill(self, tokens: Tensor, lengths: Tensor, cache: list[Tensor]) -> Tensor:
        return torch.zeros(3) + torch.zeros(4)

    @torch.jit.export
    def decode(self, tokens: Tensor, positions: Tensor, cache: list[Tensor]) -> Tensor:
        return tokens


def test_bad_model_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    assert refuse(file, tokens=1) == f"generate: --model: File does not exist: {file}"
    assert "is actually a directory" in refuse(tmp_path, tokens=1)

    file.write_text("no model")
    sentence = f"generate: expected a TorchScript model in {file}: "
    assert refuse(file, tokens=1).startswith(sentence)
    torch.save({"weight": torch.ones(2)}, file)
    assert refuse(file, tokens=1).startswith(sentence)

    torch.jit.script(Identity()).save(str(file))
    assert refuse(file, tokens=1) == (
        "generate: expected a model exported by mqa.export_torchscript, "
        f"got {file} without a method new_cache"
    )


SIZES = '{"vocab_size": 9, "num_heads": 1, "max_position": 9, "eos_token_ids": []}'


@pytest.mark.parametrize(
    ("extra_files", "sentence"),
    [
        ({}, "cannot read the configuration"),
        ({"config.json": "{}"}, "'vocab_size' not found"),
        ({"config.json": SIZES, "chat.json": "{}"}, "'before' not found"),
        (
            {"config.json": SIZES},
            "generate: The size of tensor a (3) must match the size of tensor b (4) "
            "at non-singleton dimension 0",
        ),
    ],
)
def test_models_that_fail_are_reported_in_a_sentence(
    extra_files: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "model.pt"
    torch.jit.script(FailingModel()).save(str(file), _extra_files=extra_files)
    assert sentence in refuse(file, tokens=1, max_new_tokens=2)


def test_a_model_without_a_choice_of_caches(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.jit.script(FailingModel()).save(str(file), _extra_files={"config.json": SIZES})
    assert refuse(file, tokens=1, max_new_tokens=2, cache_dtype="int8") == (
        "generate: the model has no choice of --cache-dtype: export it again with this mqa"
    )


def test_a_model_with_another_kind_of_tokenizer_is_refused(
    exported: Exported, tmp_path: Path
) -> None:
    description = json.loads(exported.tokenizer.to_str())
    description["pre_tokenizer"] = {"type": "Whitespace"}
    file = tmp_path / "model.pt"
    mqa.export_torchscript(exported.model, file, json.dumps(description))
    assert "got Whitespace" in refuse(file, prompt=PROMPT)
