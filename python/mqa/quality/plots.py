"""Plots of `mqa quality`, drawn from its report."""

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from mqa.plot_style import COLORS, label_axes
from mqa.quality.report import summaries

SMALLER_MHA = "#e0a458"


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes quality.png, loss against cache, and quality_losses.png, losses against steps."""
    paths = [folder / "quality.png", folder / "quality_losses.png"]
    for path, figure in zip(paths, (_against_cache(report), _curves(report)), strict=True):
        figure.savefig(path, dpi=120)
    return paths


def _against_cache(report: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for s in summaries(report):
        axes.errorbar(
            s.cache_bytes,
            s.loss,
            s.spread,
            fmt="o",
            color=_color(s.name),
            markersize=8,
            capsize=4,
        )
        axes.plot([s.cache_bytes] * len(s.losses), s.losses, ".", color=_color(s.name), alpha=0.5)
        axes.annotate(
            s.name, (s.cache_bytes, s.loss), xytext=(9, 0), textcoords="offset points", va="center"
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks([s.cache_bytes for s in summaries(report)])
    axes.set_xticklabels([f"{s.cache_bytes:,}" for s in summaries(report)])
    axes.margins(x=0.18)
    label_axes(
        axes,
        "The price of a smaller cache: lower is better; all models are of one size",
        "cache, bytes per token",
        "loss on held-out text, nats per byte",
    )
    return figure


def _curves(report: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for s in summaries(report):
        runs = [run["losses"] for run in report["runs"] if run["variant"] == s.name]
        curve = [mean(values) for values in zip(*(run["validation"] for run in runs), strict=True)]
        style = "-" if s.config["num_heads"] == report["settings"]["heads"] else "--"
        axes.plot(runs[0]["steps"], curve, style, color=_color(s.name), label=s.name)
    label_axes(
        axes, "Loss on held-out text during training, mean of the seeds", "step", "nats per byte"
    )
    axes.legend(frameon=False)
    return figure


def _color(name: str) -> str:
    return SMALLER_MHA if name.startswith("MHA,") else COLORS[name.split("-")[0]]
