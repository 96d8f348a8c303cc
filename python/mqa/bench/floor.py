"""The least time that a call can take: what the machine can do at most, and what a call needs.

A call takes at least

    max(bytes / bandwidth, flops / peak, exps / exp rate)

The terms are not added, as if memory, products and exponentials overlapped perfectly, so what can
be reached lies above this floor. `floor_cpu` and `floor_cuda` measure the three rates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from mqa.bench.cases import Case


@dataclass(frozen=True)
class Floor(ABC):
    """What the machine can do at most on a number of threads, per second.

    Attributes:
        threads: Threads that ran at once.
    """

    threads: int

    @abstractmethod
    def bandwidth(self, working_set: int) -> float:
        """Bytes per second of a working set as large as that."""

    @abstractmethod
    def peak(self, dtype: str) -> float:
        """Flops per second for a query of this dtype."""

    @abstractmethod
    def exp_rate(self, dtype: str) -> float:
        """Exponentials per second for a query of this dtype; infinity if they cost nothing."""

    @abstractmethod
    def slopes(self) -> dict[str, float]:
        """The bandwidths that a roofline shows, by name, that of memory first."""

    @abstractmethod
    def roofs(self) -> dict[str, float]:
        """The peaks that a roofline shows, by name."""


@dataclass(frozen=True)
class Bound:
    """The least seconds of a call.

    Attributes:
        seconds: They.
        term: Where they come from: memory, flops or exps.
        bandwidth: Bytes per second that the term memory is reckoned with.
    """

    seconds: float
    term: str
    bandwidth: float


def bound(case: Case, floor: Floor, working_set: int, moved: float = 0) -> Bound:
    """The least seconds of a call.

    Args:
        case: The call.
        floor: The machine.
        working_set: Bytes of all the caches that calls take turns over.
        moved: Bytes per second that memory gave during the case, if that was measured: it counts
            where it is more than the floor's bandwidth.
    """
    bandwidth = max(floor.bandwidth(working_set), moved)
    terms = {
        "memory": case.bytes / bandwidth,
        "flops": case.flops / floor.peak(case.dtype),
        "exps": case.exps / floor.exp_rate(case.dtype),
    }
    term = max(terms, key=terms.__getitem__)
    return Bound(terms[term], term, bandwidth)
