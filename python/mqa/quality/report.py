"""Results of `mqa quality`: every run, and the variants' means and spreads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

KEYS = {"settings", "variants", "runs", "tokens_per_second"}
# What papers report on quality: of MHA, GQA where it was tried, and MQA.
PAPERS: list[dict[str, Any]] = [
    {
        "paper": "Shazeer 2019, arXiv:1911.02150",
        "measure": "perplexity on the Billion-Word benchmark, lower is better",
        "MHA": 29.9,
        "MQA": 30.2,
    },
    {
        "paper": "Ainslie et al. 2023, GQA, arXiv:2305.13245",
        "measure": "T5-XXL uptrained, mean of tasks, higher is better",
        "MHA": 47.2,
        "GQA": 47.1,
        "MQA": 46.6,
    },
    {
        "paper": "DeepSeek-V2 2024, appendix D, arXiv:2405.04434",
        "measure": "MMLU of 7B models, higher is better",
        "MHA": 45.2,
        "GQA": 41.2,
        "MQA": 37.9,
    },
]


@dataclass(frozen=True)
class Summary:
    """One variant over all seeds.

    Attributes:
        name: of the variant.
        config: its fields of `DecoderConfig`.
        num_parameters: of the decoder.
        cache_bytes: of a token, all layers.
        losses: the last validation loss of each seed, nats per token.
        tokens_per_second: of decoding.
    """

    name: str
    config: Mapping[str, Any]
    num_parameters: int
    cache_bytes: int
    losses: Sequence[float]
    tokens_per_second: float

    @property
    def loss(self) -> float:
        """The mean over the seeds."""
        return mean(self.losses)

    @property
    def spread(self) -> float:
        """The standard deviation between seeds; 0 of a single one."""
        return stdev(self.losses) if len(self.losses) > 1 else 0.0


def summaries(report: Mapping[str, Any]) -> list[Summary]:
    """Of the variants that have a run, in the order of the report."""
    found = []
    for name, variant in report["variants"].items():
        runs = [run for run in report["runs"] if run["variant"] == name]
        if runs:
            found.append(
                Summary(
                    name,
                    variant["config"],
                    variant["num_parameters"],
                    variant["cache_bytes"],
                    [run["losses"]["validation"][-1] for run in runs],
                    report["tokens_per_second"].get(name, float("nan")),
                )
            )
    return found


def table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    header = ["", "heads", "KV heads", "MLP", "parameters", "cache", "loss", "+-", "tokens/s"]
    rows = [
        [
            s.name,
            f"{s.config['num_heads']}",
            f"{s.config['num_kv_heads']}",
            f"{s.config['intermediate_size']}",
            f"{s.num_parameters:,}",
            f"{s.cache_bytes:,}",
            f"{s.loss:.4f}",
            f"{s.spread:.4f}",
            f"{s.tokens_per_second:,.0f}",
        ]
        for s in summaries(report)
    ]
    return header, rows


def paper_table() -> tuple[list[str], list[list[str]]]:
    """Header and rows of the papers' numbers."""
    kinds = ("MHA", "GQA", "MQA")
    rows = [
        [f"{p['paper']}: {p['measure']}", *(str(p.get(kind, "")) for kind in kinds)] for p in PAPERS
    ]
    return ["paper", *kinds], rows
