"""Reads memory as fast as PyTorch can, in turn with the contenders of a case.

Memory that several programs share is not equally fast all the time: a bandwidth that was measured a
minute ago says little about this case.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mqa.bench.inputs import available_memory


class Reader:
    """Memory of its own, to be read in pieces as large as a case's caches.

    Args:
        num_bytes: Size of the memory; less where it would take more than a quarter of what is left.
    """

    def __init__(self, num_bytes: int) -> None:
        self._memory = torch.ones(min(num_bytes, available_memory() // 4) // 4)

    def prepare(self, cache_bytes: int) -> tuple[Callable[[int], object], int]:
        """A function that reads the i-th piece, and how many bytes it reads."""
        pieces = [
            piece
            for piece in self._memory.split(cache_bytes // 4)
            if len(piece) == min(cache_bytes // 4, len(self._memory))
        ]
        size = len(pieces[0]) * 4
        return lambda i: torch.dot(pieces[i % len(pieces)], pieces[i % len(pieces)]), size
