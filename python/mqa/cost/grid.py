"""The step times of a report, by kind of attention, context and batch."""

from collections.abc import Sequence
from itertools import product
from typing import Any

BASELINE = "MHA"
FEWEST = "MQA"


class Grid:
    """Looks up points as they are in the JSON file, see `mqa.cost.steps.Point`.

    Attributes:
        kinds: Of attention, in the order of the file; so are the others.
        contexts: Tokens of a sequence.
        batches: Sequences.
    """

    def __init__(self, points: Sequence[dict[str, Any]]) -> None:
        self._points = {(p["kind"], p["context"], p["batch"]): p for p in points}
        self.kinds, self.contexts, self.batches = (
            list(dict.fromkeys(values)) for values in zip(*self._points, strict=True)
        )

    def point(self, kind: str, context: int, batch: int) -> dict[str, Any]:
        """All that is known of it."""
        return self._points[kind, context, batch]

    def seconds(self, kind: str, context: int, batch: int) -> float | None:
        """Of a step, the median; None where the cache did not fit."""
        samples = self.point(kind, context, batch)["seconds"]
        return samples and samples["median"]

    def speedup(self, context: int, batch: int) -> float | None:
        """How many times as fast as MHA is MQA; None where MHA's cache did not fit."""
        slow, fast = (self.seconds(kind, context, batch) for kind in (BASELINE, FEWEST))
        return slow / fast if slow and fast else None

    def expected_speedup(self, context: int, batch: int) -> float:
        """That of the bytes that a step reads."""
        slow, fast = (self.point(kind, context, batch) for kind in (BASELINE, FEWEST))
        return slow["read_seconds"] / fast["read_seconds"]

    def cache_share(self, context: int, batch: int) -> float:
        """The cache's part of the bytes that a step with MHA reads."""
        point = self.point(BASELINE, context, batch)
        return point["cache_bytes"] / (point["cache_bytes"] + point["weight_bytes"])

    def compared(self) -> list[tuple[int, int]]:
        """Contexts and batches at which MHA and MQA both were timed, by batch."""
        return [
            (context, batch)
            for batch, context in product(self.batches, self.contexts)
            if self.speedup(context, batch)
        ]

    def same_tokens(self) -> list[tuple[int, int]]:
        """Those of `compared` that share the most common number of tokens in the cache.

        That is, if several are as common, the largest.
        """
        groups: dict[int, list[tuple[int, int]]] = {}
        for context, batch in self.compared():
            groups.setdefault(context * batch, []).append((context, batch))
        return max(groups.items(), key=lambda item: (len(item[1]), item[0]))[1] if groups else []
