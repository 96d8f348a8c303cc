"""The devices that can be measured: their size, their clock and what they can do at most."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch

import mqa
from mqa.bench import floor_cpu, floor_cuda
from mqa.bench.floor import Floor
from mqa.bench.others import Others
from mqa.bench.reading import Copier, Mover, Reader
from mqa.bench.replay import replayed
from mqa.bench.timing import Timed
from mqa.units import format_bytes

READ_SHARE = 4  # a mover takes this part of the available memory at most


class Device(ABC):
    """Where all calls of a run are made.

    Attributes:
        torch: Its name for PyTorch.
        cold_bytes: Bytes that no cache of it holds.
    """

    torch: torch.device
    cold_bytes: int

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """What the numbers depend on, beside the machine that it is in."""

    @abstractmethod
    def available_memory(self) -> int:
        """Bytes that can be allocated."""

    @abstractmethod
    def measure_floor(self, threads: int) -> Floor:
        """What it can do at most.

        Raises:
            ValueError: What measures it is missing.
        """

    @abstractmethod
    def mover(self, num_bytes: int) -> Mover:
        """For the bandwidth during a case, with that much memory or less where that is much."""

    @abstractmethod
    def watch_others(self) -> Callable[[], float | None]:
        """A function that says how many cores other programs have kept busy since then.

        It says None where that is unknown or without influence.
        """

    @abstractmethod
    def timed(self, run: Callable[[int], object], count: int, *, rehearse: bool) -> Timed:
        """Makes calls of `run` and gives their seconds.

        Args:
            run: Makes the i-th call out of `count`.
            count: Calls that differ, for example in the cache that they read.
            rehearse: Make each call once more before it is timed, which leaves in the processor's
                caches what it reads rather than what the one before it did.
        """


class Cpu(Device):
    """The CPU: each call is timed on its own.

    Args:
        clock: Gives the time in seconds.
    """

    torch = torch.device("cpu")
    cold_bytes = 2**30  # no processor caches as much

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock

    def describe(self) -> dict[str, str]:
        """Instruction set of PyTorch's kernels."""
        return {"instructions of torch": torch.backends.cpu.get_cpu_capability()}

    def available_memory(self) -> int:
        """Without swapping."""
        info = Path("/proc/meminfo")
        if info.exists():
            fields = dict(line.split(":") for line in info.read_text().splitlines())
            if "MemAvailable" in fields:
                return int(fields["MemAvailable"].split()[0]) * 1024
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def measure_floor(self, threads: int) -> Floor:
        """By the tool `mqa-floor`."""
        return floor_cpu.measure(threads)

    def mover(self, num_bytes: int) -> Mover:
        """Reads."""
        return Reader(min(num_bytes, self.available_memory() // READ_SHARE))

    def watch_others(self) -> Callable[[], float | None]:
        """By Linux's account."""
        return Others().cores

    def timed(self, run: Callable[[int], object], count: int, *, rehearse: bool) -> Timed:
        """By the clock of the host."""

        def timed(call: int) -> float:
            number = call % count
            if rehearse:
                run(number)
            start = self._clock()
            run(number)
            return self._clock() - start

        return timed


class Cuda(Device):
    """The current GPU: many calls are timed together, as a graph.

    Raises:
        ValueError: There is none, or mqa was built without CUDA.
    """

    torch = torch.device("cuda")

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            why = "torch finds none" if torch.version.cuda else "torch is built without CUDA"
            raise ValueError(f"expected a GPU for the device cuda, but {why}")
        try:
            mqa.attention(*torch.zeros(3, 1, 1, 1, 64, device=self.torch))
        except NotImplementedError as error:
            raise ValueError(str(error).splitlines()[0]) from None
        self._properties = torch.cuda.get_device_properties()
        self.cold_bytes = 4 * self._properties.L2_cache_size

    def describe(self) -> dict[str, str]:
        """The GPU."""
        properties = self._properties
        return {
            "GPU": properties.name,
            "compute capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": str(properties.multi_processor_count),
            "L2": format_bytes(properties.L2_cache_size),
            "GPU memory": format_bytes(properties.total_memory),
            "CUDA": str(torch.version.cuda),
        }

    def available_memory(self) -> int:
        """Of the GPU, with what PyTorch holds in reserve."""
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        return free

    def measure_floor(self, threads: int) -> Floor:
        """By a copy and by matrix products."""
        return floor_cuda.measure(self.torch, self.seconds, self.available_memory(), threads)

    def mover(self, num_bytes: int) -> Mover:
        """Copies."""
        return Copier(min(num_bytes, self.available_memory() // READ_SHARE), self.torch)

    def watch_others(self) -> Callable[[], float | None]:
        """They do not disturb graphs."""
        return lambda: None

    def timed(self, run: Callable[[int], object], count: int, *, rehearse: bool) -> Timed:
        """By replays of a graph."""
        return replayed(self, run, count, rehearse=rehearse)

    def seconds(self, function: Callable[[], object]) -> float:
        """Between two events of the current stream."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def capture(self, function: Callable[[], object]) -> Callable[[], object]:
        """A CUDA graph."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
        return graph.replay


DEVICES: dict[str, Callable[[], Device]] = {"cpu": Cpu, "cuda": Cuda}
