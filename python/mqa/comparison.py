"""How likely a decoder finds texts after each way to convert it."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mqa.convert import GROUPINGS, merge_heads, turn_heads
from mqa.decoder import Decoder
from mqa.likelihood import nll
from mqa.merging import BLIND, RULES
from mqa.moments import moments_of_text, moments_of_weights

# An audit of a 1B model with 14 KV heads, before any training: cross-entropy by KV heads left.
PUBLISHED: dict[str, Any] = {
    "original": 2.54,
    "kv_heads": [7, 2, 1],
    "mean": [8.24, 10.27, 10.18],
    "align": [3.19, 5.94, 6.83],
}
ROTATED = 128  # tokens whose logits are compared
WEIGHTS, TEXT = "weights", "text"  # what a method goes by


class Comparison:
    """Measures one conversion after another.

    Attributes:
        model: to convert.
        num_kv_heads: fewer than it has, and a divisor of that.
    """

    def __init__(
        self, model: Decoder, num_kv_heads: int, calibration: Tensor, texts: Mapping[str, Tensor]
    ) -> None:
        """Looks at keys and values.

        Args:
            model: to convert.
            num_kv_heads: after the conversion.
            calibration: tokens `[B, T]`.
            texts: others, by name, each `[B, T]`.
        """
        self.model = model
        self.num_kv_heads = num_kv_heads
        self._texts = texts
        self._known = {
            WEIGHTS: moments_of_weights(model),
            TEXT: moments_of_text(model, calibration),
        }

    def original(self) -> dict[str, float]:
        """The loss of the model as it is, in nats per token of every text."""
        return self._losses(self.model)

    def rotation(self) -> dict[str, float]:
        """What the turns of "align" alone change in logits, and how large these are, at most."""
        turned = turn_heads(self.model, self.num_kv_heads, self._known[TEXT])
        tokens = next(iter(self._texts.values()))[:1, :ROTATED]
        with torch.no_grad():
            before, after = (m.sequence_logits(tokens) for m in (self.model, turned))
        return {
            "largest_difference": (after - before).abs().max().item(),
            "largest_logit": before.abs().max().item(),
        }

    def conversions(self) -> Iterator[dict[str, Any]]:
        """For every method, what it goes by, its groups and the losses."""
        ways = [(WEIGHTS, GROUPINGS[0]), (TEXT, GROUPINGS[0])]
        if self.num_kv_heads > 1:
            ways.append((TEXT, GROUPINGS[1]))
        for method in RULES:
            for basis, groups in ways:
                if method in BLIND and (basis, groups) == (TEXT, GROUPINGS[0]):
                    continue  # the same as by weights
                known = self._known[basis]
                converted = merge_heads(self.model, self.num_kv_heads, method, known, groups)
                yield {
                    "method": method,
                    "by": basis,
                    "groups": groups,
                    "losses": self._losses(converted),
                }

    def _losses(self, model: Decoder) -> dict[str, float]:
        return {
            name: sum(nll(model, piece) for piece in pieces) / len(pieces)
            for name, pieces in self._texts.items()
        }
