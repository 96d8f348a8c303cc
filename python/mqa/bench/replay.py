"""Times calls on a GPU as replays of a graph, so that the gaps between launches do not count.

A kernel may take less time than the host needs to launch it. A graph holds the launches of many
calls, which the GPU then does one right after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from mqa.bench.timing import Timed

MIN_SECONDS = 2e-3  # of a replay: launching it and reading the clock take some microseconds


class Graphs(Protocol):
    """A device that can record work and do it again."""

    def seconds(self, function: Callable[[], object]) -> float:
        """The time from the beginning to the end of the work that the function gives."""

    def capture(self, function: Callable[[], object]) -> Callable[[], object]:
        """Records the work that the function gives; returns what does it again."""


def replayed(device: Graphs, run: Callable[[int], object], count: int, *, rehearse: bool) -> Timed:
    """A function that gives the mean time of many calls in one graph.

    Args:
        device: The device.
        run: Makes the i-th call out of `count`.
        count: Calls that differ; a graph holds all of them equally often.
        rehearse: Replay once more before it is timed, so that what the calls read is in L2.
    """
    once = device.seconds(lambda: run(0))
    calls = count * max(1, math.ceil(MIN_SECONDS / (count * once)))

    def all_calls() -> None:
        for call in range(calls):
            run(call % count)

    replay = device.capture(all_calls)
    replay()  # the first one prepares the graph

    def timed(_: int) -> float:
        if rehearse:
            replay()
        return device.seconds(replay) / calls

    return timed
