"""Times several functions in turn, so that a busy moment of the machine hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MIN_SAMPLES = 3
MAX_SAMPLES = 200


@dataclass(frozen=True)
class Samples:
    """Seconds per call."""

    median: float
    minimum: float
    maximum: float
    count: int


Timed = Callable[[int], float]  # makes the i-th call, returns the seconds that it took


def interleave(
    functions: Mapping[str, Timed],
    budget: float,
    *,
    pauses: Mapping[str, float] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> dict[str, Samples]:
    """Calls all functions in turn until the budget is spent.

    Every round calls each function once, except those that have had more than their share of the
    time so far: a slow one takes part in every few rounds only. Each is called `MIN_SAMPLES` times,
    less often only if it uses up the whole budget alone, and `MAX_SAMPLES` times at most.

    Args:
        functions: By name. The argument numbers the calls, of all functions together: functions
            that read one of several caches in turn find the one that was not read for longest.
        budget: Seconds for all functions together, whatever they spend them on.
        pauses: Seconds to sleep before a call, by name; they use up budget.
        clock: Gives the time in seconds.
        sleep: Waits for a number of seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    spent = dict.fromkeys(functions, 0.0)
    call = 0
    while True:
        elapsed = sum(spent.values())
        waiting = [
            name
            for name in functions
            if _takes_turn(len(seconds[name]), spent[name], elapsed, budget, len(functions))
        ]
        if not waiting:
            return {name: _summary(samples) for name, samples in seconds.items()}
        for name in waiting:
            pause = pauses.get(name, 0.0) if pauses else 0.0
            turn = clock()
            if pause:
                sleep(pause)
            seconds[name].append(functions[name](call))
            call += 1
            spent[name] += clock() - turn


def _takes_turn(count: int, spent: float, elapsed: float, budget: float, functions: int) -> bool:
    if count < MIN_SAMPLES:
        return count == 0 or spent < budget
    return count < MAX_SAMPLES and elapsed < budget and spent <= elapsed / functions


def _summary(samples: list[float]) -> Samples:
    return Samples(statistics.median(samples), min(samples), max(samples), len(samples))
