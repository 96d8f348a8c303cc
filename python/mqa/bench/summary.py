"""Ratios of a case and their means over many."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mqa.bench.measure import Result
from mqa.bench.peers import OURS, OURS_PACKED, OURS_UNQUANTISED, PEERS, SDPA


@dataclass(frozen=True)
class Summary:
    """Geometric mean and minimum of each ratio over a group of cases; None without any.

    Attributes:
        name: The group.
        cases: How many were measured.
        best_peer: Time of each case's fastest peer, divided by ours.
        sdpa: Time of SDPA(enable_gqa), divided by ours.
        floor: The least time on this machine, divided by ours.
        packed: Time of each case's fastest peer, divided by ours with packed keys.
    """

    name: str
    cases: int
    best_peer: tuple[float, float] | None
    sdpa: tuple[float, float] | None
    floor: tuple[float, float] | None
    packed: tuple[float, float] | None


def best_peer(result: Result) -> str | None:
    """The fastest peer; for an 8-bit cache, which no peer reads, ours on a bfloat16 cache."""
    names = [name for name in (*PEERS, OURS_UNQUANTISED) if name in result.seconds]
    return min(names, key=lambda name: result.seconds[name].median, default=None)


def speedup(result: Result, peer: str | None, ours: str = OURS) -> float | None:
    """Time of the peer divided by ours, None if one of them was not timed."""
    if peer is None or peer not in result.seconds or ours not in result.seconds:
        return None
    return result.seconds[peer].median / result.seconds[ours].median


def floor_fraction(result: Result) -> float | None:
    """The least time divided by ours, None if ours was not timed."""
    if OURS not in result.seconds:
        return None
    return result.bound.seconds / result.seconds[OURS].median


def table_name(result: Result) -> str:
    """Decode or prefill, cold or warm."""
    case = result.case
    return "prefill" if case.is_causal else f"decode, {'cold' if case.is_cold else 'warm'}"


def summarise(results: Sequence[Result]) -> list[Summary]:
    """One summary per table, per table and bound, then per table and dtype.

    Only the last ones have the 8-bit caches, which no peer reads.
    """
    unquantised = [result for result in results if not result.case.is_quantised]
    return [
        *_summarise_by(table_name, unquantised),
        *_summarise_by(lambda r: f"{table_name(r)}, bound by {r.bound.term}", unquantised),
        *_summarise_by(lambda r: f"{table_name(r)}, {r.case.cache_dtype}", results),
    ]


def _summarise_by(key: Callable[[Result], str], results: Sequence[Result]) -> list[Summary]:
    names = sorted({key(result) for result in results})
    return [_summary(name, [r for r in results if key(r) == name]) for name in names]


def _summary(name: str, results: Sequence[Result]) -> Summary:
    return Summary(
        name,
        len(results),
        _mean_and_minimum(speedup(result, best_peer(result)) for result in results),
        _mean_and_minimum(speedup(result, SDPA) for result in results),
        _mean_and_minimum(floor_fraction(result) for result in results),
        _mean_and_minimum(speedup(result, best_peer(result), OURS_PACKED) for result in results),
    )


def _mean_and_minimum(ratios: Iterable[float | None]) -> tuple[float, float] | None:
    known = [ratio for ratio in ratios if ratio is not None]
    if not known:
        return None
    return math.exp(sum(map(math.log, known)) / len(known)), min(known)
