"""Everything that a run measured, as tables and JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mqa.bench.cases import Case
from mqa.bench.extras import COPY, AppendResult, OverheadResult
from mqa.bench.floor import Floor
from mqa.bench.measure import Result
from mqa.bench.others import BUSY
from mqa.bench.peers import CONTENDERS, OURS, OURS_PACKED, SDPA
from mqa.bench.summary import (
    Summary,
    best_peer,
    floor_fraction,
    speedup,
    summarise,
    table_name,
)
from mqa.bench.training import HEAD_DIM, HEADS, TrainingResult

MISSING = "-"


@dataclass
class Report:
    """A run of `mqa bench`, which fills it as it goes.

    Attributes:
        machine: See `mqa.bench.machine`.
        versions: Of Python and packages.
        command: The command line.
        floors: What the machine could do, each time it was measured.
        results: Decode and prefill cases.
        skipped: Cases that were not measured, and why.
        append: The table of kv_append.
        overhead: The table of calls on short caches.
        training: The table of forward and backward.
    """

    machine: dict[str, str]
    versions: dict[str, str]
    command: list[str]
    floors: list[Floor] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    skipped: list[tuple[Case, str]] = field(default_factory=list)
    append: list[AppendResult] = field(default_factory=list)
    overhead: list[OverheadResult] = field(default_factory=list)
    training: list[TrainingResult] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    title: str
    header: list[str]
    rows: list[list[str]]


def to_json(report: Report) -> dict[str, Any]:
    """All of it in plain types; times in seconds."""
    return {
        "machine": report.machine,
        "versions": report.versions,
        "command": report.command,
        "floors": [asdict(floor) for floor in report.floors],
        "results": [_result_to_json(result) for result in report.results],
        "skipped": [{"case": asdict(case), "reason": why} for case, why in report.skipped],
        "append": [asdict(result) for result in report.append],
        "overhead": [asdict(result) for result in report.overhead],
        "training": [asdict(result) for result in report.training],
        "missing": missing(report.results),
        "summaries": [asdict(summary) for summary in summarise(report.results)],
    }


def missing(results: Sequence[Result]) -> dict[str, str]:
    """Contenders that were timed in no case, and their commonest reason."""
    timed = {name for result in results for name in result.seconds}
    reasons: dict[str, Counter[str]] = {}
    for result in results:
        for name, problem in result.problems.items():
            if name not in timed:
                reasons.setdefault(name, Counter())[problem] += 1
    return {name: counts.most_common(1)[0][0] for name, counts in reasons.items()}


def tables(report: Report) -> list[Table]:
    """The tables of a report, without those that are empty."""
    names = list(dict.fromkeys(table_name(result) for result in report.results))
    shown = [
        *(
            _case_table(name, [r for r in report.results if table_name(r) == name])
            for name in names
        ),
        _append_table(report.append),
        _overhead_table(report.overhead),
        _training_table(report.training),
        _summary_table(summarise(report.results)),
    ]
    return [table for table in shown if table.rows]


def notes(report: Report) -> list[str]:
    """What the tables leave open: missing contenders, failures, cases left out."""
    absent = missing(report.results)
    lines = [f"missing: {name}: {reason}" for name, reason in absent.items()]
    failures = Counter(
        f"{name}: {problem}"
        for result in report.results
        for name, problem in result.problems.items()
        if name not in absent
    )
    lines += [f"not in {count} cases: {failure}" for failure, count in failures.items()]
    skipped = Counter(reason for _, reason in report.skipped)
    lines += [f"left out {count} cases: {reason}" for reason, count in skipped.items()]
    disturbed = sum(result.is_disturbed for result in report.results)
    if disturbed:
        lines.append(
            f"disturbed: {disturbed} cases, marked by !: other programs kept more than {BUSY} "
            "cores busy, so their times say little"
        )
    return lines


def _case_table(title: str, results: Sequence[Result]) -> Table:
    contenders = [
        name for name in CONTENDERS if any(_milliseconds(r, name) != MISSING for r in results)
    ]
    header = [
        "cache",
        "thr",
        "D",
        "S",
        "B",
        "T",
        "H_kv",
        "G",
        *(f"{name} ms" for name in contenders),
    ]
    header += ["best peer", "vs best", "vs SDPA", "GB/s", "of memory", "of floor", "bound"]
    rows = []
    for result in results:
        case = result.case
        sizes = (case.threads, case.head_dim, case.context, case.batch, case.tokens)
        heads = (case.kv_heads, case.group)
        rows.append(
            [
                case.cache_dtype,
                *map(str, sizes + heads),
                *(_milliseconds(result, name) for name in contenders),
                best_peer(result) or MISSING,
                _number(speedup(result, best_peer(result))),
                _number(speedup(result, SDPA)),
                *_bandwidth(result),
                _number(floor_fraction(result)),
                result.bound.term + (" !" if result.is_disturbed else ""),
            ]
        )
    return Table(title, header, rows)


def _append_table(results: Sequence[AppendResult]) -> Table:
    header = ["cache", "thr", "B", "T", f"{OURS} us", f"{COPY} us", f"{OURS} GB/s", f"{COPY} GB/s"]
    rows = []
    for result in results:
        times = {name: result.seconds[name].median for name in (OURS, COPY)}
        rows.append(
            [
                result.case.cache_dtype,
                *map(str, (result.case.threads, result.case.batch, result.case.tokens)),
                *(f"{time * 1e6:.1f}" for time in times.values()),
                *(f"{result.bytes[name] / time / 1e9:.1f}" for name, time in times.items()),
            ]
        )
    return Table(
        "kv_append (8-bit: quantised from bfloat16, which copy_ only copies)", header, rows
    )


def _overhead_table(results: Sequence[OverheadResult]) -> Table:
    header = ["dtype", "thr", "S", "G", "D", f"{OURS} us", f"{SDPA} us", f"{OURS} / {SDPA}"]
    rows = []
    for result in results:
        ours, theirs = (result.seconds[name].median for name in (OURS, SDPA))
        sizes = (result.threads, result.context, result.group, result.head_dim)
        row = [result.dtype, *map(str, sizes), f"{ours * 1e6:.1f}", f"{theirs * 1e6:.1f}"]
        rows.append([*row, f"{ours / theirs:.2f}"])
    return Table("overhead of a call", header, rows)


def _training_table(results: Sequence[TrainingResult]) -> Table:
    header = ["dtype", "thr", "T", "H_kv", "causal", f"{OURS} ms", f"{SDPA} ms"]
    header += [f"{SDPA} / {OURS}", f"{OURS} MB", f"{SDPA} MB"]
    rows = []
    for result in results:
        case = result.case
        ours, theirs = (result.seconds[name].median for name in (OURS, SDPA))
        rows.append(
            [
                case.dtype,
                *map(str, (case.threads, case.length, case.kv_heads)),
                "yes" if case.is_causal else "no",
                *(f"{time * 1e3:.1f}" for time in (ours, theirs)),
                f"{theirs / ours:.2f}",
                *(f"{result.peak_bytes[name] / 1e6:.1f}" for name in (OURS, SDPA)),
            ]
        )
    return Table(f"forward and backward, {HEADS} heads of {HEAD_DIM}", header, rows)


def _summary_table(summaries: Sequence[Summary]) -> Table:
    header = ["geometric mean / minimum", "cases", "vs best peer", "vs SDPA", "of floor"]
    header += [f"{OURS_PACKED}, vs best peer"]
    rows = [
        [
            summary.name,
            str(summary.cases),
            *(
                f"{pair[0]:.2f} / {pair[1]:.2f}" if pair else MISSING
                for pair in (summary.best_peer, summary.sdpa, summary.floor, summary.packed)
            ),
        ]
        for summary in summaries
    ]
    return Table("summary", header, rows)


def _milliseconds(result: Result, name: str) -> str:
    if name in result.seconds:
        return f"{result.seconds[name].median * 1e3:.4g}"
    return "wrong" if result.problems.get(name, "").startswith("wrong") else MISSING


def _bandwidth(result: Result) -> tuple[str, str]:
    """Bytes that ours had to move, per second, and as a share of what memory gave."""
    if OURS not in result.seconds:
        return MISSING, MISSING
    rate = result.case.bytes / result.seconds[OURS].median
    return f"{rate / 1e9:.4g}", _number(rate / result.bound.bandwidth)


def _number(ratio: float | None) -> str:
    return MISSING if ratio is None else f"{ratio:.2f}"


def _result_to_json(result: Result) -> dict[str, Any]:
    return {
        **asdict(result),
        "best_peer": best_peer(result),
        "speedup_best_peer": speedup(result, best_peer(result)),
        "speedup_packed": speedup(result, best_peer(result), OURS_PACKED),
        "speedup_sdpa": speedup(result, SDPA),
        "floor_fraction": floor_fraction(result),
    }
