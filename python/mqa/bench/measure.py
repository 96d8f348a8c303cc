"""Measures cases: checks every contender against `mqa.attention`, then times those that agree."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mqa.bench.cases import Case
from mqa.bench.device import Device
from mqa.bench.floor import Bound, Floor, bound
from mqa.bench.inputs import Inputs, make_inputs, num_caches
from mqa.bench.others import BUSY
from mqa.bench.peers import CONTENDERS, OURS, OURS_PACKED, OURS_UNQUANTISED
from mqa.bench.peers.contender import Contender
from mqa.bench.reading import Mover
from mqa.bench.timing import Samples, Timed, interleave

# Largest difference of two correct results, as a share of the largest element of ours.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 4e-2}


MOVE = "move"  # takes its turn beside the contenders


@dataclass(frozen=True)
class Options:
    """How a case is measured.

    Attributes:
        contenders: Names among `CONTENDERS`; the first is `OURS`.
        budget: Seconds of timed calls per case, all contenders together.
        cold_bytes: Bytes that the caches of a cold case take together.
    """

    contenders: Sequence[str]
    budget: float
    cold_bytes: int


@dataclass(frozen=True)
class Result:
    """What was measured of a case.

    Attributes:
        case: The case.
        num_caches: Caches that the calls took turns over.
        seconds: By contender, of those that computed the right result.
        problems: By contender, why it was not timed.
        moved_bandwidth: Bytes per second that were moved in turn with the contenders, or None.
        others: Cores that other programs kept busy meanwhile, or None if unknown.
        bound: The least time on this machine.
    """

    case: Case
    num_caches: int
    seconds: dict[str, Samples]
    problems: dict[str, str]
    moved_bandwidth: float | None
    others: float | None
    bound: Bound

    @property
    def is_disturbed(self) -> bool:
        """Whether other programs took so much that the times say little."""
        return self.others is not None and self.others > BUSY


class FloorGauge:
    """Measures the floor again from time to time: a machine that is shared is not always as fast.

    Args:
        measure: Measures the floor of a number of threads.
        max_age: Seconds after which a measurement is repeated.
        clock: Gives the time in seconds.
    """

    def __init__(
        self,
        measure: Callable[[int], Floor],
        max_age: float = 30,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._measure = measure
        self._max_age = max_age
        self._clock = clock
        self._latest: Floor | None = None
        self._time = 0.0
        self.all: list[Floor] = []

    def floor(self, threads: int) -> Floor:
        """The latest measurement on that many threads, or a new one if it is too old."""
        is_old = self._clock() - self._time > self._max_age
        if self._latest is None or self._latest.threads != threads or is_old:
            self._latest = self._measure(threads)
            self._time = self._clock()
            self.all.append(self._latest)
        return self._latest


@torch.no_grad()
def measure_case(
    case: Case, floor: Floor, mover: Mover, options: Options, device: Device
) -> Result:
    """Checks and times all contenders of a case.

    Raises:
        NotEnoughMemoryError: The caches do not fit into memory.
    """
    torch.set_num_threads(case.threads)
    names = [name for name in options.contenders if _is_of_interest(name, case, device)]
    copies = _copies(case, names)
    count = num_caches(case, options.cold_bytes, copies, device.available_memory())
    inputs = make_inputs(case, count, device)
    contenders, turns, problems = _prepare(inputs, names, device)
    pauses = {name: contender.pause for name, contender in contenders.items()}
    moves = mover.prepare(case.cache_bytes) if case.is_cold else None
    if moves:
        turns[MOVE] = device.timed(moves.run, moves.count, rehearse=False)
    others = device.watch_others()
    seconds = interleave(turns, options.budget, pauses=pauses)
    other_cores = others()
    moved = moves.bytes / seconds.pop(MOVE).median if moves else None
    least = bound(case, floor, count * case.cache_bytes, moved or 0)
    return Result(case, count, seconds, problems, moved, other_cores, least)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference as a share of the largest element of ours; infinity for NaN."""
    if ours.shape != theirs.shape:
        return float("inf")
    largest = (ours.double() - theirs.double()).abs().max() / ours.double().abs().max()
    return float(largest.nan_to_num(nan=torch.inf))


def _is_of_interest(name: str, case: Case, device: Device) -> bool:
    """Whether the contender is another one for this case."""
    if name == OURS_UNQUANTISED:
        return case.is_quantised
    if name == OURS_PACKED:  # on CPU only, in groups of 16 tokens
        return device.torch.type == "cpu" and not case.is_causal and case.context % 16 == 0
    return True


def _copies(case: Case, names: Sequence[str]) -> int:
    """Private copies of the caches, in units of the common ones."""
    copies = int(OURS_PACKED in names)
    if case.is_quantised:
        return copies + (2 if OURS_UNQUANTISED in names else 0)
    return copies + int("vLLM" in names and importlib.util.find_spec("vllm") is not None)


def _prepare(
    inputs: Inputs, names: Sequence[str], device: Device
) -> tuple[dict[str, Contender], dict[str, Timed], dict[str, str]]:
    """Contenders with right results and how each is timed, and why the others are not."""
    contenders: dict[str, Contender] = {}
    turns: dict[str, Timed] = {}
    problems: dict[str, str] = {}
    rehearse = not inputs.case.is_cold
    expected: Tensor | None = None
    for name in names:
        try:
            contender = CONTENDERS[name](inputs)
            result = contender.output(contender.run(0))
            contender.run(1 % len(inputs.caches))  # the first call of some does work only once
            largest = difference(result if expected is None else expected, result)
            turn = device.timed(contender.run, len(inputs.caches), rehearse=rehearse)
        except Exception as error:  # whatever a peer raises, the others are still to be measured
            problems[name] = _sentence(error)
            continue
        if expected is None:
            expected = result
        if largest > TOLERANCE[inputs.case.dtype]:
            problems[name] = f"wrong result: differs from {OURS} by {largest:.2g} of its maximum"
        else:
            contenders[name] = contender
            turns[name] = turn
    return contenders, turns, problems


def _sentence(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = lines[0].strip() if lines else type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
