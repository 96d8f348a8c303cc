"""Measures a plan with a progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mqa.bench.cases import AppendCase, Case
from mqa.bench.device import Device
from mqa.bench.extras import measure_append, measure_overhead
from mqa.bench.inputs import NotEnoughMemoryError
from mqa.bench.measure import FloorGauge, Options, Result, measure_case
from mqa.bench.progress import progress
from mqa.bench.report import Report
from mqa.bench.training import TrainingCase, measure_training

SAVE_EVERY = 50  # cases: a peer that crashes the process takes no more with it


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        cases: Of attention.
        append: Of kv_append.
        overhead: Dtype and threads.
        training: Of forward and backward.
        options: How a case is measured.
        deadline: Seconds after which no case is begun, or None.
    """

    cases: Sequence[Case]
    append: Sequence[AppendCase]
    overhead: Sequence[tuple[str, int]]
    training: Sequence[TrainingCase]
    options: Options
    deadline: float | None


def run(
    plan: Plan, report: Report, save: Callable[[], object], start: float, device: Device
) -> None:
    """Fills the report, as far as the deadline and the user, who may press Ctrl-C, let it.

    Cases that other programs disturbed are measured once more at the end.

    Args:
        plan: What to measure.
        report: The report to fill.
        save: Writes what the report holds so far.
        start: When the run began, by `time.monotonic`.
        device: Where all calls are made.
    """
    gauge = FloorGauge(device.measure_floor)
    mover = device.mover(plan.options.cold_bytes)
    report.floors = gauge.all

    def is_late() -> bool:
        return plan.deadline is not None and time.monotonic() - start > plan.deadline

    def measure(case: Case) -> Result:
        return measure_case(case, gauge.floor(case.threads), mover, plan.options, device)

    try:
        for dtype, threads in progress(plan.overhead, "overhead"):
            report.overhead.append(measure_overhead(dtype, threads, plan.options.budget, device))
        for append_case in progress(plan.append, "kv_append"):
            report.append.append(measure_append(append_case, plan.options.budget, device))
        for training_case in progress(plan.training, "training"):
            report.training.append(measure_training(training_case, plan.options.budget, device))
        for number, case in enumerate(progress(plan.cases, "attention", leave=True), start=1):
            if is_late():
                report.skipped.append((case, f"not begun within {plan.deadline:g} s"))
                continue
            try:
                report.results.append(measure(case))
            except NotEnoughMemoryError as error:
                report.skipped.append((case, str(error)))
            if number % SAVE_EVERY == 0:
                save()
        disturbed = [i for i, result in enumerate(report.results) if result.is_disturbed]
        for i in progress(disturbed, "disturbed ones again"):
            if not is_late():
                again = measure(report.results[i].case)
                report.results[i] = min(report.results[i], again, key=lambda r: r.others or 0)
    except KeyboardInterrupt:
        measured = {*(result.case for result in report.results), *(c for c, _ in report.skipped)}
        report.skipped += [(case, "interrupted") for case in plan.cases if case not in measured]
