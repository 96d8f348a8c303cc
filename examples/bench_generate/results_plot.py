"""The plot of the benchmark: one panel per context, and one for the decoder with random weights."""

from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results import OURS, Results

OURS_COLOR, PEER_COLOR = "#1f9d6b", "#9aa5b1"


def draw(results: Results, path: Path) -> None:
    """Draws tokens per second as bars, with the range of the rounds, into an image."""
    panels: list[tuple[str, dict[str, list[float]]]] = [
        (f"SmolLM2-135M, {result.context:,} tokens", result.rates) for result in results.smollm2
    ]
    if results.variants:
        title = f"1B, random weights, {results.variants[0].context:,} tokens"
        panels.append((title, {v.name: v.rates for v in results.variants}))
    bars = max(len(rates) for _, rates in panels)
    figure = Figure(figsize=(5.5 * len(panels), 1.2 + 0.45 * bars), layout="constrained")
    for axes, (title, rates) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        _bars(axes, title, rates)
    figure.savefig(path, dpi=150)


def _bars(axes: Axes, title: str, rates: dict[str, list[float]]) -> None:
    medians = [median(values) for values in rates.values()]
    errors = [
        [middle - min(values) for middle, values in zip(medians, rates.values(), strict=True)],
        [max(values) - middle for middle, values in zip(medians, rates.values(), strict=True)],
    ]
    ours = (OURS.split(",")[0], "MQA")
    colors = [OURS_COLOR if name.startswith(ours) else PEER_COLOR for name in rates]
    bars = axes.barh(list(rates), medians, xerr=errors, color=colors, error_kw={"elinewidth": 1})
    axes.bar_label(bars, [f"{rate:.1f}" for rate in medians], padding=4, fontsize=8)
    axes.set_title(f"{title}: decode, tokens/s", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.margins(x=0.15)
    axes.invert_yaxis()
