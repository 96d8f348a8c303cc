"""How much other programs disturb a measurement.

On a core that a thread shares with another program, every barrier of a thread pool may last as long
as the system's time slice: milliseconds for what takes microseconds.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

BUSY = 0.2  # cores taken by others above which a measurement says little

_IDLE_FIELDS = (3, 4)  # of /proc/stat: idle and waiting for input or output
_COUNTED_FIELDS = 8  # those after them are counted in others already


class Others:
    """Processor time that everything but this process takes, from construction on.

    Args:
        stat: Linux's account of processor time.
    """

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._start = time.monotonic()
        self._seconds = _seconds_of_others(stat)

    def cores(self) -> float | None:
        """How many cores others kept busy on average, or None where the system does not say."""
        seconds, elapsed = _seconds_of_others(self._stat), time.monotonic() - self._start
        if seconds is None or self._seconds is None or elapsed == 0:
            return None
        return max(seconds - self._seconds, 0.0) / elapsed


def _seconds_of_others(stat: Path) -> float | None:
    if not stat.exists():
        return None
    fields = [int(field) for field in stat.read_text().splitlines()[0].split()[1:]]
    busy = sum(fields[:_COUNTED_FIELDS]) - sum(fields[i] for i in _IDLE_FIELDS)
    return busy / os.sysconf("SC_CLK_TCK") - time.process_time()
