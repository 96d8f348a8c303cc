"""What every contender is to the benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mqa.bench.inputs import Inputs


class UnsupportedError(Exception):
    """A contender cannot compute a case; the message says why."""


@dataclass(frozen=True)
class Contender:
    """A function prepared for the inputs of one case.

    Attributes:
        run: Computes with the i-th cache. This is what is timed, so it does nothing else.
        output: The result of `run` as [B, G, T, D].
        pause: Seconds to sleep before a call.
    """

    run: Callable[[int], Any]
    output: Callable[[Any], Tensor] = lambda result: result
    pause: float = 0.0


Prepare = Callable[[Inputs], Contender]


def refuse_quantised(inputs: Inputs) -> None:
    """For contenders that read no 8-bit cache."""
    if inputs.case.is_quantised:
        raise UnsupportedError(f"reads no {inputs.case.cache_dtype} cache with scales")
