"""Runs the variants in C++ and in Python and takes their speed."""

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from mqa import Decoder

Key = TypeVar("Key")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Run:
    """One greedy generation: its new tokens, its speed in tokens per second, its cache."""

    tokens: list[int]
    prefill: float
    decode: float
    cache_bytes: int


@dataclass(frozen=True)
class CppRun(Run):
    """What the C++ program reports besides: the tokens of the prompt."""

    prompt: list[int]


def cpp_command(program: Path, model: Path, prompt_file: Path, num_tokens: int) -> list[str]:
    """The command line with which `examples/generate` continues a prompt."""
    options = {"model": model, "prompt-file": prompt_file, "max-new-tokens": num_tokens}
    return [str(program), *(f"--{name}={value}" for name, value in options.items()), "--ignore-eos"]


def run_cpp(command: list[str]) -> CppRun:
    """Runs a `cpp_command` and reads its report.

    Raises:
        subprocess.CalledProcessError: the program failed, and has said why.
    """
    result = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, check=True)
    report = json.loads(result.stdout)
    return CppRun(
        tokens=report["tokens"],
        prefill=report["prefill_tokens_per_second"],
        decode=report["decode_tokens_per_second"],
        prompt=report["prompt_tokens"],
        cache_bytes=report["cache_bytes"],
    )


@torch.inference_mode()
def run_python(model: Decoder, prompt: list[int], num_tokens: int) -> Run:
    """The same generation by the decoder in Python."""
    cache = model.new_cache(1, len(prompt) + num_tokens - 1)
    start = time.perf_counter()
    logits = model.prefill(torch.tensor([prompt]), torch.tensor([len(prompt)]), cache)
    prefill_seconds = time.perf_counter() - start
    tokens = [int(logits.argmax())]

    start = time.perf_counter()
    for position in range(len(prompt), len(prompt) + num_tokens - 1):
        logits = model.decode(torch.tensor(tokens[-1:]), torch.tensor([position]), cache)
        tokens.append(int(logits.argmax()))
    decode_seconds = time.perf_counter() - start
    return Run(
        tokens,
        len(prompt) / prefill_seconds,
        (num_tokens - 1) / decode_seconds,
        sum(tensor.nbytes for tensor in cache),
    )


@torch.inference_mode()
def long_decode_rate(model: Decoder, context: int, steps: int = 4) -> float:
    """Tokens per second of the last `steps` tokens before `context`.

    Speed does not depend on what the tokens before are, so a constant takes the place of a long
    prefill. (Zeros would not do: the system may give all of them the same page of memory.)
    """
    filled = context - steps - 1
    cache = model.new_cache(1, context)
    for index, tensor in enumerate(cache):
        if model.config.attention_impl == "mqa":
            tensor.fill_(0.5)
        else:
            shape = (1, model.config.num_kv_heads, filled, model.config.head_dim)
            cache[index] = torch.full(shape, 0.5)
    token = torch.tensor([0])
    model.decode(token, torch.tensor([filled]), cache)  # warms up
    start = time.perf_counter()
    for position in range(filled + 1, context):
        model.decode(token, torch.tensor([position]), cache)
    return steps / (time.perf_counter() - start)


def round_robin(tasks: Mapping[Key, Callable[[], Result]], rounds: int) -> dict[Key, list[Result]]:
    """Runs all tasks in turn, `rounds` times, so that a busy moment does not hit one task alone."""
    results: dict[Key, list[Result]] = {key: [] for key in tasks}
    with tqdm(total=rounds * len(tasks), unit="run") as progress:
        for _ in range(rounds):
            for key, task in tasks.items():
                results[key].append(task())
                progress.update()
    return results
