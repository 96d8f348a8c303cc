"""What was measured, what follows from it, and its table and JSON file."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from mqa.table import format_table
from mqa.units import format_bytes

OURS = "mqa, eager"
BASELINE = "MHA"


@dataclass(frozen=True)
class ContextResult:
    """SmolLM2 at one context.

    Attributes:
        context: tokens in the cache.
        rates: tokens per second of each round, by engine; `OURS` is one of them.
        attention_share: part of the time of a step of `OURS` that appends and attends.
        missing: why an engine has no rates.
    """

    context: int
    rates: dict[str, list[float]]
    attention_share: float
    missing: dict[str, str] = field(default_factory=dict)

    def ratio(self, engine: str) -> float:
        """How many times as fast as `engine` is `OURS`."""
        return median(self.rates[OURS]) / median(self.rates[engine])


@dataclass(frozen=True)
class VariantResult:
    """The decoder with random weights and some number of KV heads.

    A step reads all weights and the cache: their bytes bound what the variants can differ by.
    """

    name: str
    num_kv_heads: int
    context: int
    weight_bytes: int
    cache_bytes: int
    rates: list[float]
    attention_share: float


@dataclass(frozen=True)
class Results:
    """All that was measured, and on what. Either part may be empty."""

    machine: dict[str, str]
    smollm2: list[ContextResult]
    variants: list[VariantResult]

    def ratio_to_mha(self, variant: VariantResult) -> float:
        """How many times as fast as multi-head attention."""
        baseline = next(v for v in self.variants if v.name == BASELINE)
        return median(variant.rates) / median(baseline.rates)


def format_results(results: Results) -> str:
    """The tables for the terminal."""
    parts = [f"{name}: {value}" for name, value in results.machine.items()]
    for result in results.smollm2:
        rows = [
            [engine, *_rate_columns(rates), f"{result.ratio(engine):.2f}"]
            for engine, rates in result.rates.items()
        ]
        header = ["SmolLM2-135M", "tokens/s", "min", "max", "mqa / this"]
        parts += ["", f"decode at {result.context:,} tokens", format_table(header, rows)]
        parts += [f"attention takes {result.attention_share:.0%} of the step of {OURS}"]
        parts += [f"missing: {engine}: {reason}" for engine, reason in result.missing.items()]
    if results.variants:
        rows = [
            [
                v.name,
                str(v.num_kv_heads),
                format_bytes(v.weight_bytes),
                format_bytes(v.cache_bytes),
                *_rate_columns(v.rates),
                f"{results.ratio_to_mha(v):.2f}",
                f"{v.attention_share:.0%}",
            ]
            for v in results.variants
        ]
        columns = ["tokens/s", "min", "max", f"this / {BASELINE}", "attention"]
        table = format_table(["1B, random weights", "KV heads", "weights", "cache", *columns], rows)
        parts += ["", f"decode at {results.variants[0].context:,} tokens", table]
    return "\n".join(parts)


def _rate_columns(rates: list[float]) -> list[str]:
    return [f"{rate:.1f}" for rate in (median(rates), min(rates), max(rates))]


def write_json(results: Results, path: Path) -> None:
    """Writes all rates with the ratios that follow from them."""
    content: dict[str, Any] = asdict(results)
    for entry, result in zip(content["smollm2"], results.smollm2, strict=True):
        entry["mqa_over"] = {engine: result.ratio(engine) for engine in result.rates}
    for entry, variant in zip(content["variants"], results.variants, strict=True):
        entry["over_mha"] = results.ratio_to_mha(variant)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
