"""`generate` of transformers with its own attentions and with that of mqa, in turn.

SmolLM2-135M, and a Llama of a billion random weights with one KV head, in bfloat16, behind contexts
of random values.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

# Everything is in files: this keeps `transformers` from asking a server about them.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoModelForCausalLM, Cache, LlamaConfig, PreTrainedModel

import smollm2
from bench_generate import MODEL_FOLDER, ROOT
from engine import MOST_TOKENS, measure
from mqa.cost.shapes import billion_config
from mqa.integrations.transformers import MQACache, register
from mqa.table import format_table
from report import describe_machine
from transformers_engine import TransformersEngine, load_gguf

BASELINE = "sdpa"


@dataclass(frozen=True)
class Result:
    """Steps per second of each round, by engine; a step gives every sequence a token."""

    model: str
    context: int
    batch: int
    rates: dict[str, list[float]]
    missing: dict[str, str]


def main() -> None:
    """Measures, prints the table, and writes JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contexts", type=int, nargs="+", default=[200, 4096, 16384])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=8, help="new tokens in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "build/bench_transformers.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    register()
    models: dict[str, Callable[[], PreTrainedModel]] = {
        "SmolLM2-135M": lambda: load_gguf(smollm2.install(MODEL_FOLDER), torch.bfloat16),
        "1B, one KV head": lambda: billion_llama(max(arguments.contexts) + MOST_TOKENS),
    }
    results = []
    for name, load in models.items():
        model = load()
        for context in arguments.contexts:
            for batch in arguments.batches:
                print(f"{name}: context {context:,}, batch {batch}", file=sys.stderr)
                results.append(measure_model(name, model, context, batch, arguments))
    print(describe_machine())
    print(format_results(results))
    arguments.output.write_text(
        json.dumps(
            {"machine": describe_machine(), "results": [asdict(r) for r in results]}, indent=2
        )
    )


def billion_llama(context: int) -> PreTrainedModel:
    """The decoder of `billion_config` as transformers spells it."""
    shape = billion_config(num_kv_heads=1, context=context)
    config = LlamaConfig(
        num_hidden_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.max_position,
        tie_word_embeddings=shape.tie_embeddings,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval().requires_grad_(False)


def mqa_cache(model: PreTrainedModel, slots: int, dtype: str | None) -> Cache:
    """The static cache of mqa."""
    return MQACache(model.config, max_cache_len=slots, cache_dtype=dtype)


def measure_model(
    name: str, model: PreTrainedModel, context: int, batch: int, arguments: argparse.Namespace
) -> Result:
    """All attentions and caches with one model, context and batch."""
    with_dynamic_cache = TransformersEngine(model)
    with_static_caches = {
        f"mqa, MQACache{suffix}": TransformersEngine(
            model, attn_implementation="mqa", new_cache=partial(mqa_cache, dtype=dtype)
        )
        for suffix, dtype in (("", None), (", int8", "int8"))
    }
    for engine in (with_dynamic_cache, *with_static_caches.values()):
        engine.fill_with_random_values(context, batch)
    engines = {name: with_dynamic_cache.with_attention(name) for name in ("eager", BASELINE, "mqa")}
    engines |= with_static_caches
    missing: dict[str, str] = {}

    def note_failure(engine: str, error: Exception) -> None:
        missing[engine] = f"{type(error).__name__}: {error}".splitlines()[0]

    rates = measure(engines, arguments.tokens, arguments.rounds, note_failure)
    return Result(name, context, batch, rates, missing)


def format_results(results: list[Result]) -> str:
    """A row per case: milliseconds of a step, and how many times as fast as the baseline."""
    engines = list(results[0].rates | results[0].missing)
    rows = []
    for result in results:
        row = [result.model, f"{result.context:,}", str(result.batch)]
        for engine in engines:
            if engine in result.missing:
                row.append(result.missing[engine])
                continue
            rate = median(result.rates[engine])
            row.append(f"{1000 / rate:.1f} ({rate / median(result.rates[BASELINE]):.2f}x)")
        rows.append(row)
    return format_table(["model", "context", "batch", *engines], rows)


if __name__ == "__main__":
    main()
