"""Moves memory as fast as PyTorch can, in turn with the contenders of a case.

Memory that several programs share is not equally fast all the time, nor is a GPU whose clocks
change: a bandwidth that was measured a minute ago says little about this case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moves:
    """Calls that move memory.

    Attributes:
        run: Makes the i-th call out of `count`.
        count: Calls that differ.
        bytes: Read and written by each.
    """

    run: Callable[[int], object]
    count: int
    bytes: int


class Mover(Protocol):
    """Memory of its own, moved in pieces."""

    def prepare(self, cache_bytes: int) -> Moves:
        """Calls that each move about as many bytes as a case's caches have."""


class Reader:
    """Reads memory with a CPU.

    Args:
        num_bytes: Size of the memory.
    """

    def __init__(self, num_bytes: int) -> None:
        self._memory = torch.ones(num_bytes // 4)

    def prepare(self, cache_bytes: int) -> Moves:
        """Reads one piece in each call."""
        pieces = _pieces(self._memory, cache_bytes // 4)
        return Moves(lambda i: torch.dot(pieces[i], pieces[i]), len(pieces), 4 * len(pieces[0]))


class Copier:
    """Copies memory on a GPU: one half of it to the other.

    Args:
        num_bytes: Size of the memory.
        device: The GPU.
    """

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._from, self._to = torch.ones(2, num_bytes // 2, dtype=torch.uint8, device=device)

    def prepare(self, cache_bytes: int) -> Moves:
        """Copies one piece in each call."""
        sources, targets = (_pieces(half, cache_bytes // 2) for half in (self._from, self._to))
        return Moves(lambda i: targets[i].copy_(sources[i]), len(sources), 2 * len(sources[0]))


def _pieces(memory: Tensor, size: int) -> Sequence[Tensor]:
    """Equal pieces of that many elements, or all of the memory where it has fewer."""
    size = min(size, len(memory))
    return [piece for piece in memory.split(size) if len(piece) == size]
