"""What the benchmark needs from an engine, and how it takes its speed."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Protocol

from tqdm import tqdm

WARM_UP_TOKENS = 2
COMPILE_BACKEND = "inductor"
PREFILL_CHUNK = 512  # tokens
MOST_TOKENS = 128  # of one `decode`, the room that caches have behind the context


class MissingEngineError(Exception):
    """An engine that cannot run here; the message says why."""


@dataclass
class Run:
    """The tokens of one generation, and when each was there, in seconds."""

    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def add(self, token: int) -> None:
        """A token is there now."""
        self.times.append(time.perf_counter())
        self.tokens.append(token)


class Engine(Protocol):
    """A model in some library, which generates greedily, one sequence at a time."""

    def prefill(self, tokens: Sequence[int]) -> None:
        """Make `tokens` the context."""

    def decode(self, num_tokens: int) -> Run:
        """Continue the context by `num_tokens` tokens, and forget them again.

        What is written behind the context first is token 0, so that all engines do the same.
        """


def tokens_per_second(times: Sequence[float]) -> float:
    """The speed of the median step between `times`, without the first ones, which warm up."""
    warm = times[WARM_UP_TOKENS - 1 :]
    return 1 / median(after - before for before, after in pairwise(warm))


def measure(
    engines: Mapping[str, Engine],
    num_tokens: int,
    rounds: int,
    on_failure: Callable[[str, Exception], None],
) -> dict[str, list[float]]:
    """Lets all engines, whose contexts are there, decode in turn.

    Args:
        engines: by name.
        num_tokens: to measure in each round.
        rounds: how often each engine has its turn, besides once before, to warm up.
        on_failure: told about an engine that raises; the others go on without it.

    Returns:
        Tokens per second of each round.
    """
    rates: dict[str, list[float]] = {name: [] for name in engines}
    with tqdm(total=(rounds + 1) * len(engines), unit="run") as progress:
        for round_number in range(rounds + 1):
            for name in list(rates):
                progress.set_postfix_str(name)
                try:
                    run = engines[name].decode(num_tokens + WARM_UP_TOKENS)
                except Exception as error:  # a peer's; the table names it
                    on_failure(name, error)
                    del rates[name]
                    continue
                finally:
                    progress.update()
                if round_number > 0:
                    rates[name].append(tokens_per_second(run.times))
    return rates
