"""The results of `mqa convert --compare` as a table and as bars."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEYS = {"model", "kv_heads", "texts", "original", "rotation", "conversions", "published"}
METHODS = {
    "mean": "mean of the heads",
    "first": "first head alone",
    "svd": "best shared subspace (svd)",
    "align": "turned, then averaged (align)",
}


def table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: losses in nats per token."""
    header = ["nats per token", "by", "groups", *report["texts"]]
    rows = [["as it was", "", "", *_losses(report["original"])]]
    rows += [[r["method"], r["by"], r["groups"], *_losses(r["losses"])] for r in _ordered(report)]
    return header, rows


def published_table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of an audit by others."""
    published = report["published"]
    header = ["a published audit, 1B, 14 KV heads", *(f"to {n}" for n in published["kv_heads"])]
    rows = [[method, *(f"{x:.2f}" for x in published[method])] for method in ("mean", "align")]
    return header, [["as it was", f"{published['original']:.2f}", "", ""], *rows]


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes convert.png: a panel for each text, a bar for each conversion."""
    from matplotlib.figure import Figure

    from mqa.plot_style import COLORS

    before, after = report["kv_heads"]["before"], report["kv_heads"]["after"]
    conversions = _ordered(report)
    labels = ["as it was", *map(_label, conversions)]
    color = COLORS["MQA" if after == 1 else "GQA"]
    texts = list(report["texts"])
    figure = Figure(figsize=(4 + 3 * len(texts), 1.5 + 0.35 * len(labels)), layout="constrained")
    panels = figure.subplots(1, len(texts), sharey=True, squeeze=False)[0]
    for axes, text in zip(panels, texts, strict=True):
        losses = [report["original"][text], *(c["losses"][text] for c in conversions)]
        bars = axes.barh(labels, losses, color=[COLORS["MHA"], *[color] * len(conversions)])
        axes.bar_label(bars, [f"{loss:.2f}" for loss in losses], padding=4, fontsize=8)
        axes.set_title(text, loc="left", fontsize=10)
        axes.set_xlabel("nats per token (lower is better)")
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    figure.suptitle(
        f"{report['model']}: loss on held-out text after {before} -> {after} KV heads, "
        "before any training",
        fontsize=11,
    )
    path = folder / "convert.png"
    figure.savefig(path, dpi=120)
    return [path]


def _ordered(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The conversions, the best on the first text first."""
    text = next(iter(report["texts"]))
    return sorted(report["conversions"], key=lambda conversion: conversion["losses"][text])


def _losses(losses: Mapping[str, float]) -> list[str]:
    return [f"{loss:.3f}" for loss in losses.values()]


def _label(conversion: Mapping[str, Any]) -> str:
    label = METHODS[conversion["method"]]
    if conversion["method"] in ("svd", "align"):
        label += f", by {conversion['by']}"
    return label if conversion["groups"] == "neighbours" else f"{label}, similar heads"
