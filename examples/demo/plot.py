"""The plot of the demo."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

if TYPE_CHECKING:
    from report import Report, Samples

VARIANT_COLOR = "#5b8def"
ENGINE_COLORS = ("#1d3557", "#1f9d6b", "#e0a458")


def draw(report: Report, path: Path) -> None:
    """Draws cache, likelihood and speeds of all variants into an image."""
    variants = report.variants
    names = [f"{v.name}\n{v.num_kv_heads} KV head{'s' * (v.num_kv_heads > 1)}" for v in variants]
    figure = Figure(figsize=(11, 6.6), layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.12))
    axes = figure.subplot_mosaic("AAABBB;CCDDEE", height_ratios=(4, 5))

    megabytes = [v.long_cache_bytes / 1e6 for v in variants]
    _bars(axes["A"], f"cache of {report.long_context:,} tokens, MB", names, megabytes, "{:,.0f}")
    likelihoods = [v.nll for v in variants]
    _bars(axes["B"], "negative log-likelihood per token", names, likelihoods, "{:.2f}")

    colors = dict(zip(variants[0].prefill, ENGINE_COLORS, strict=True))
    speeds = {
        "C": (f"prefill of {report.num_prompt_tokens} tokens", [v.prefill for v in variants]),
        "D": (f"decode of {report.num_new_tokens} tokens", [v.decode for v in variants]),
        "E": (f"decode at {report.long_context:,} tokens", [v.long_decode for v in variants]),
    }
    for key, (title, samples) in speeds.items():
        _engine_bars(axes[key], f"{title}, tokens/s", names, samples, colors)
    figure.legend(
        *axes["C"].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(colors),
        frameon=False,
    )
    figure.savefig(path, dpi=150)


def _bars(axes: Axes, title: str, names: list[str], values: list[float], label: str) -> None:
    bars = axes.bar(names, values, width=0.5, color=VARIANT_COLOR)
    axes.bar_label(bars, fmt=label, padding=2, fontsize=9)
    _style(axes, title)


def _engine_bars(
    axes: Axes, title: str, names: list[str], samples: list[Samples], colors: dict[str, str]
) -> None:
    """One group of bars per variant, one bar per engine: medians, with the range of the rounds."""
    engines = list(samples[0])
    width = 0.8 / len(engines)
    for index, engine in enumerate(engines):
        rounds = [variant[engine] for variant in samples]
        medians = [median(rates) for rates in rounds]
        errors = [
            [middle - min(rates) for middle, rates in zip(medians, rounds, strict=True)],
            [max(rates) - middle for middle, rates in zip(medians, rounds, strict=True)],
        ]
        shift = (index - (len(engines) - 1) / 2) * width
        positions = [position + shift for position in range(len(names))]
        bars = axes.bar(
            positions,
            medians,
            width,
            yerr=errors,
            error_kw={"elinewidth": 1, "ecolor": "#555555"},
            label=engine,
            color=colors[engine],
        )
        axes.bar_label(bars, [f"{rate:.3g}" for rate in medians], padding=2, fontsize=7)
    axes.set_xticks(range(len(names)), names)
    _style(axes, title)


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False, labelleft=False, bottom=False, labelsize=9)
    axes.margins(y=0.12)
