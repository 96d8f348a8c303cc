"""Speed of speculative decoding against plain decoding: python bench_speculative.py MODEL.gguf.

Prints a row for each prompt and drafter. Every run must give the tokens of the plain one. Times are
CPU seconds of the one thread computed with, which other programs disturb less than the clock.
"""

import argparse
import time

import torch

import mqa
from mqa.tokenizer import load_tokenizer

CODE = """class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y

    def __add__(self, other):
        return Point(self.x + other.x, self.y + other.y)
"""
PROMPTS = {
    "repeat code": f"Repeat this code without any change:\n```python\n{CODE}```",
    "a story": "Tell me a story about a lighthouse keeper.",
}


def main() -> None:
    """Measures and prints the rows of a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--tokens", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(arguments.model)
    model = mqa.load(arguments.model, getattr(torch, arguments.dtype))
    drafters = {
        "none": None,
        "prompt lookup, 4": mqa.PromptLookup(4),
        "prompt lookup, 8": mqa.PromptLookup(8),
    }
    for title, text in PROMPTS.items():
        prompt = tokenizer.encode_chat(text)
        expected: list[list[int]] = []
        for name, drafter in drafters.items():
            stats = mqa.GenerationStats()
            start = time.process_time()
            tokens = mqa.generate(
                model, [prompt], arguments.tokens, stop_tokens=(), drafter=drafter, stats=stats
            )
            seconds = time.process_time() - start
            expected = expected or tokens
            assert tokens == expected
            print(
                f"| {title} | {name} | {stats.decode_steps} | "
                f"{stats.accepted_tokens} of {stats.drafted_tokens} | {seconds:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
