"""How the work of generating n tokens grows with n, with a cache and without one.

With a cache, a token takes one decode step, which reads the keys and values of those before it.
Without one, all that came before goes through the whole model again; only the last token's logits
are computed. Both are timed at some lengths, and the time of a whole generation is the sum over
its tokens, interpolated between them. As a check, a short text is generated both ways for real.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mqa.bench.progress import progress
from mqa.bench.timing import interleave
from mqa.config import DecoderConfig
from mqa.cost import fit
from mqa.cost.shapes import describe, fill_with_random_values, random_decoder
from mqa.decoder import Decoder

SHORTEST = 16  # tokens
TAIL = 4  # exponents are those of the lengths from the longest one's quarter on


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        config: The decoder, with room for the longest text.
        longest: Tokens of the longest text.
        points: Lengths to time, in even steps of their logarithm.
        budget: Seconds for each length.
        checked: Tokens to generate for real.
    """

    config: DecoderConfig
    longest: int
    points: int
    budget: float
    checked: int

    def lengths(self) -> list[int]:
        """From `SHORTEST` to `longest`."""
        ratio = self.longest / SHORTEST
        steps = self.points - 1
        return sorted({round(SHORTEST * ratio ** (i / steps)) for i in range(self.points)})


@dataclass(frozen=True)
class Way:
    """One way to generate.

    Attributes:
        seconds: Of the n-th token, for each length n; medians.
        totals: Of all n tokens together, the sum over these.
        coefficients: Of the fitted polynomial in n for `seconds`, the constant first.
        total_coefficients: Of that for `totals`.
        exponent: Slope of `totals` in logarithms, over the longest lengths.
        generated_seconds: Measured, of generating `checked` tokens.
        interpolated_seconds: What `seconds` say about the same.
    """

    seconds: list[float]
    totals: list[float]
    coefficients: list[float]
    total_coefficients: list[float]
    exponent: float
    generated_seconds: float
    interpolated_seconds: float


@dataclass(frozen=True)
class Growth:
    """What came out.

    Attributes:
        shape: Of the decoder.
        num_kv_heads: Its KV heads.
        dtype: Of its weights.
        lengths: Tokens.
        exponent_from: The shortest length that exponents come from.
        checked: Tokens that were generated for real.
        with_cache: One decode step for a token.
        without_cache: All tokens again for a token.
    """

    shape: dict[str, int]
    num_kv_heads: int
    dtype: str
    lengths: list[int]
    exponent_from: int
    checked: int
    with_cache: Way
    without_cache: Way


def measure(plan: Plan) -> Growth:
    """Times both ways in turn, on `torch.get_num_threads()` threads."""
    model = random_decoder(plan.config, torch.float32)
    cache = model.new_cache(batch=1, capacity=plan.longest)
    fill_with_random_values(cache)
    tokens = torch.randint(plan.config.vocab_size, (1, plan.longest))
    steps: dict[str, Callable[[int], Tensor]] = {
        "with": lambda n: decode(model, tokens, n, cache),
        "without": lambda n: recompute(model, tokens, n),
    }
    lengths = plan.lengths()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    with torch.inference_mode():
        for length in progress(lengths, "growth"):
            timed = {name: _timed(step, length) for name, step in steps.items()}
            for name, samples in interleave(timed, plan.budget).items():
                seconds[name].append(samples.median)
        generated = {name: _generate(step, plan.checked) for name, step in steps.items()}
    exponent_from = next(n for n in lengths if n * TAIL >= plan.longest)
    # Attention over n tokens adds a term in n to a decode step, and one in n^2 to all tokens.
    ways = {
        name: summarise(
            lengths, seconds[name], degree, exponent_from, plan.checked, generated[name]
        )
        for name, degree in (("with", 1), ("without", 2))
    }
    return Growth(
        shape=describe(plan.config),
        num_kv_heads=plan.config.num_kv_heads,
        dtype="float32",
        lengths=lengths,
        exponent_from=exponent_from,
        checked=plan.checked,
        with_cache=ways["with"],
        without_cache=ways["without"],
    )


def decode(model: Decoder, tokens: Tensor, length: int, cache: list[Tensor]) -> Tensor:
    """Logits after `length` tokens of `tokens [1, N]`, all but the last of them in the cache."""
    return model.decode(tokens[:, length - 1], torch.tensor([length - 1]), cache)


def recompute(model: Decoder, tokens: Tensor, length: int) -> Tensor:
    """The same without a cache: `length` tokens go through the model, the last gets logits."""
    start = torch.zeros(1, dtype=torch.int64)
    return model.logits(model.hidden(tokens[:, :length], start, None)[:, -1])


def summarise(
    lengths: list[int],
    seconds: list[float],
    degree: int,
    exponent_from: int,
    checked: int,
    generated: float,
) -> Way:
    """What follows from the seconds of single tokens."""
    coefficients = fit.polynomial(lengths, seconds, degree)
    totals = [fit.sum_to(n, lengths, seconds) for n in lengths]
    tail = lengths.index(exponent_from)
    return Way(
        seconds=seconds,
        totals=totals,
        coefficients=coefficients,
        total_coefficients=fit.total(coefficients),
        exponent=fit.exponent(lengths[tail:], totals[tail:]),
        generated_seconds=generated,
        interpolated_seconds=fit.sum_to(checked, lengths, seconds),
    )


def _timed(step: Callable[[int], Tensor], length: int) -> Callable[[int], float]:
    step(length)  # the first one allocates

    def timed(_: int) -> float:
        start = time.perf_counter()
        step(length)
        return time.perf_counter() - start

    return timed


def _generate(step: Callable[[int], Tensor], count: int) -> float:
    start = time.perf_counter()
    for length in progress(range(1, count + 1), "check"):
        step(length)
    return time.perf_counter() - start
