"""The plot of the demo."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from report import Report, Samples

VARIANT_COLORS = ("#9aa5b1", "#5b8def", "#1f9d6b")
ENGINE_COLORS = ("#1d3557", "#1f9d6b", "#e0a458")


def draw(report: Report, path: Path) -> None:
    """Draws cache, likelihood and speeds of all variants into an image."""
    names = [
        f"{v.name}\n{v.num_kv_heads} KV head{'s' * (v.num_kv_heads > 1)}" for v in report.variants
    ]
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    axes = figure.subplot_mosaic("AAABBB;CCDDEE")
    _bars(
        axes["A"],
        f"Cache of {report.long_context:,} tokens in MB",
        names,
        [v.long_cache_bytes / 1e6 for v in report.variants],
        "{:,.0f}",
    )
    _bars(
        axes["B"],
        "Negative log-likelihood per token (MQA is pooled, not retrained)",
        names,
        [v.nll for v in report.variants],
        "{:.2f}",
    )
    speeds = {
        "C": (
            f"Prefill of {report.num_prompt_tokens} tokens",
            [v.prefill for v in report.variants],
        ),
        "D": (f"Decode of {report.num_new_tokens} tokens", [v.decode for v in report.variants]),
        "E": (
            f"Decode at {report.long_context:,} tokens",
            [v.long_decode for v in report.variants],
        ),
    }
    for key, (title, samples) in speeds.items():
        _grouped_bars(axes[key], f"{title}, tokens/s", names, samples)
    axes["C"].legend(frameon=False, fontsize=8, loc="lower left", ncols=1)
    figure.savefig(path, dpi=150)


def _bars(axes: Axes, title: str, names: list[str], values: list[float], label: str) -> None:
    bars = axes.bar(names, values, width=0.6, color=VARIANT_COLORS)
    axes.bar_label(bars, fmt=label, padding=2, fontsize=9)
    _style(axes, title)


def _grouped_bars(axes: Axes, title: str, names: list[str], samples: list[Samples]) -> None:
    engines = list(samples[0])
    width = 0.8 / len(engines)
    for index, engine in enumerate(engines):
        shift = (index - (len(engines) - 1) / 2) * width
        heights = [median(variant[engine]) for variant in samples]
        positions = [x + shift for x in range(len(names))]
        bars = axes.bar(positions, heights, width, label=engine, color=ENGINE_COLORS[index])
        axes.bar_label(bars, fmt="{:.3g}", padding=2, fontsize=7)
    axes.set_xticks(range(len(names)), names)
    _style(axes, title)


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False, labelleft=False, bottom=False, labelsize=9)
    axes.margins(y=0.15)
