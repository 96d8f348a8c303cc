"""The decode step of a decoder with random weights, eager against `torch.compile`, in turn."""

import argparse
from statistics import median

import torch

from decoder_engine import DecoderEngine
from engine import MOST_TOKENS, Engine, measure
from mqa import DecoderConfig
from mqa.cost.shapes import random_decoder
from report import describe_machine

CONTEXTS = (256, 4096)


def small_config() -> DecoderConfig:
    """Half of a billion-parameter model's width and layers, all 16 query heads over one KV head."""
    return DecoderConfig(
        num_layers=8,
        hidden_size=1024,
        num_heads=16,
        num_kv_heads=1,
        head_dim=64,
        intermediate_size=4096,
        vocab_size=32000,
        max_position=max(CONTEXTS) + MOST_TOKENS,
        tie_embeddings=True,
    )


def fail(name: str, error: Exception) -> None:
    """Both engines are ours: neither may fail."""
    raise RuntimeError(name) from error


def main() -> None:
    """Measures and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32, help="new tokens in each round")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(describe_machine())
    print("| dtype | context | eager, ms | compiled, ms | eager / compiled |")
    print("|---|---:|---:|---:|---:|")
    for dtype in (torch.float32, torch.bfloat16):
        model = random_decoder(small_config(), dtype)
        for context in CONTEXTS:
            engines: dict[str, Engine] = {}
            for name in ("eager", "compiled"):
                engine = DecoderEngine(model, compiled=name == "compiled")
                engine.fill_with_random_values(context)
                engines[name] = engine
            rates = measure(engines, arguments.tokens, arguments.rounds, fail)
            eager, compiled = (1000 / median(rates[name]) for name in engines)
            ratio = eager / compiled
            print(f"| {dtype} | {context:,} | {eager:.2f} | {compiled:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
