"""What must hold for the report to mean anything."""

from collections.abc import Mapping, Sequence

from measure import CppRun, Run
from variants import EXACT, Variant


class CheckError(Exception):
    """Two things that must be equal differ."""


def check_runs(
    variants: Sequence[Variant],
    runs: Mapping[tuple[str, str], Sequence[Run]],
    prompt: list[int],
    reference: list[int],
) -> list[str]:
    """Compares the runs of all variants, by variant and engine, with each other.

    Args:
        variants: the variants.
        runs: the runs of each variant by each engine.
        prompt: the prompt in tokens.
        reference: the new tokens by `transformers`.

    Returns:
        What has been found to hold.

    Raises:
        CheckError: something does not.
    """
    for variant in variants:
        engines = {engine: runs[name, engine] for name, engine in runs if name == variant.name}
        # MQA by pooling is another model, which has no reference but itself.
        expected = reference if variant.name in EXACT else next(iter(engines.values()))[0].tokens
        for engine, repetitions in engines.items():
            for run in repetitions:
                check_equal(f"tokens of {variant.name} by {engine}", run.tokens, expected)
                if isinstance(run, CppRun):
                    slots = len(prompt) + len(run.tokens) - 1
                    check_equal("tokens of the prompt by the C++ program", run.prompt, prompt)
                    check_equal(
                        f"bytes of {variant.name}'s cache",
                        run.cache_bytes,
                        variant.cache_bytes(slots),
                    )
    exact = " and ".join(EXACT)
    return [
        f"{exact} give the {len(reference)} tokens that transformers gives (greedy, float32).",
        "C++ and Python give the same tokens, with the mqa operators and with plain PyTorch.",
        "The tokenizer in C++ splits the prompt as the one in Python does.",
        "The caches in C++ are as large as mqa plan says.",
    ]


def check_equal(what: str, got: object, expected: object) -> None:
    """Raises a CheckError unless `got` is `expected`."""
    if got != expected:
        raise CheckError(f"{what}: expected {expected}, got {got}")
