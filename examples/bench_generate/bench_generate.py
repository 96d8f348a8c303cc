"""Decode speed of whole models: the reference decoder beside transformers and llama.cpp.

SmolLM2-135M in bfloat16 (llama.cpp: the 4-bit file as it is), one sequence, at a short and at a
long context, all engines in turn in interleaved rounds; then a decoder of a billion random weights
as MHA, GQA and MQA at a very long context.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path

# Everything is in files: this keeps `transformers` from asking a server about them.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

import mqa
import smollm2
from decoder_engine import DecoderEngine
from engine import (
    MOST_TOKENS,
    WARM_UP_TOKENS,
    Engine,
    MissingEngineError,
    measure,
    tokens_per_second,
)
from llama_engine import LlamaEngine
from mqa.cost.shapes import KV_HEADS, billion_config, random_decoder
from reference import load_tokenizer
from report import describe_machine
from results import OURS, ContextResult, Results, VariantResult, format_results, write_json
from results_plot import draw
from transformers_engine import TransformersEngine, load_gguf, static_cache

ROOT = Path(__file__).resolve().parents[2]
PASSAGE = ROOT / "examples/demo/passage.txt"
MODEL_FOLDER = ROOT / "build/demo"  # shared with the demo
PARTS = ("smollm2", "1b")


def main() -> None:
    """Measures, prints the tables, and writes JSON and plot."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch._inductor.config.freezing = arguments.freeze
    results = Results(
        machine=describe_machine() | {"dtype": "bfloat16", "rounds": str(arguments.rounds)},
        smollm2=measure_smollm2(arguments) if "smollm2" in arguments.parts else [],
        variants=measure_variants(arguments) if "1b" in arguments.parts else [],
    )
    print("\n" + format_results(results))
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_json(results, arguments.output / "results.json")
    draw(results, arguments.output / "results.png")
    print(f"\n{arguments.output}/results.json\n{arguments.output}/results.png")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contexts", type=int, nargs="+", default=[200, 6000], help="of SmolLM2")
    parser.add_argument("--long-context", type=int, default=16384, help="of the random weights")
    parser.add_argument("--tokens", type=int, default=32, help="new tokens in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--freeze",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let compiled engines, the peers' too, rearrange the weights for matrix products",
    )
    parser.add_argument(
        "--llama-python",
        type=Path,
        default=Path(sys.executable),
        help="the Python of an environment that has llama-cpp-python",
    )
    parser.add_argument("--output", type=Path, default=ROOT / "build/bench_generate")
    arguments = parser.parse_args()
    most = MOST_TOKENS - WARM_UP_TOKENS
    if not 1 <= arguments.tokens <= most:
        parser.error(f"--tokens: expected 1 to {most}, got {arguments.tokens}")
    return arguments


def measure_smollm2(arguments: argparse.Namespace) -> list[ContextResult]:
    """All engines at each context."""
    gguf = smollm2.install(MODEL_FOLDER)
    passage = load_tokenizer(gguf).encode(PASSAGE.read_text(encoding="utf-8")).ids
    model = mqa.load_gguf(gguf, torch.bfloat16)
    missing: dict[str, str] = {}
    engines: dict[str, Engine] = {}
    with ExitStack() as cleanup:
        for name, make in engine_makers(model, gguf, arguments).items():
            print(f"loads: {name}", file=sys.stderr)
            try:
                engines[name] = make()
            except MissingEngineError as error:
                missing[name] = str(error)
        for engine in engines.values():
            if isinstance(engine, LlamaEngine):
                cleanup.callback(engine.close)
        return [
            measure_context(engines, list(islice(cycle(passage), context)), missing, arguments)
            for context in arguments.contexts
        ]


def engine_makers(
    model: mqa.Decoder, gguf: Path, arguments: argparse.Namespace
) -> dict[str, Callable[[], Engine]]:
    """How to make each engine, by the name that it has in the table."""
    peer = load_gguf(gguf, torch.bfloat16)
    capacity = max(arguments.contexts) + MOST_TOKENS
    return {
        OURS: lambda: DecoderEngine(model),
        "mqa, compiled": lambda: DecoderEngine(model, compiled=True),
        "transformers, eager, sdpa": lambda: TransformersEngine(peer),
        "transformers, eager, eager attention": lambda: TransformersEngine(
            peer, attn_implementation="eager"
        ),
        "transformers, static cache, compiled": lambda: TransformersEngine(
            peer, compiled=True, new_cache=static_cache
        ),
        "llama.cpp, Q4_1": lambda: LlamaEngine(
            arguments.llama_python, gguf, arguments.threads, capacity
        ),
    }


def measure_context(
    engines: dict[str, Engine],
    tokens: Sequence[int],
    missing: dict[str, str],
    arguments: argparse.Namespace,
) -> ContextResult:
    """All engines with `tokens` as their context."""
    missing = dict(missing)
    ready: dict[str, Engine] = {}

    def note_failure(name: str, error: Exception) -> None:
        missing[name] = f"{type(error).__name__}: {error}".splitlines()[0]

    print(f"context of {len(tokens):,} tokens", file=sys.stderr)
    for name, engine in engines.items():
        try:
            engine.prefill(tokens)
            ready[name] = engine
        except Exception as error:  # a peer's; the table names it
            note_failure(name, error)
    rates = measure(ready, arguments.tokens, arguments.rounds, note_failure)
    ours = engines[OURS]
    assert isinstance(ours, DecoderEngine)
    return ContextResult(len(tokens), rates, ours.attention_share(arguments.tokens), missing)


def measure_variants(arguments: argparse.Namespace) -> list[VariantResult]:
    """The decoder with random weights, one variant after the other: two may not fit."""
    results = []
    for name, num_kv_heads in KV_HEADS.items():
        print(f"random weights: {name}", file=sys.stderr)
        config = billion_config(num_kv_heads, arguments.long_context + MOST_TOKENS)
        engine = DecoderEngine(random_decoder(config, torch.bfloat16))
        engine.fill_with_random_values(arguments.long_context)
        engine.decode(WARM_UP_TOKENS)
        results.append(
            VariantResult(
                name=name,
                num_kv_heads=num_kv_heads,
                context=arguments.long_context,
                weight_bytes=sum(weight.nbytes for weight in engine.model.parameters()),
                cache_bytes=sum(tensor.nbytes for tensor in engine.cache),
                rates=[
                    tokens_per_second(engine.decode(arguments.tokens + WARM_UP_TOKENS).times)
                    for _ in range(arguments.rounds)
                ],
                attention_share=engine.attention_share(arguments.tokens),
            )
        )
    return results


if __name__ == "__main__":
    main()
