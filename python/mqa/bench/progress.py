"""A progress bar, where tqdm is installed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def progress(items: Sequence[T], name: str, *, leave: bool = False) -> Iterable[T]:
    """The items, with a bar that shows how far they have come; it stays at the end with `leave`."""
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        return items
    return tqdm(items, desc=name, leave=leave)
