"""The plot of `mqa uptrain`: how much of the loss comes back."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

COLORS = ("#1f9d6b", "#5b8def", "#e0a458", "#9b6bcc", "#9aa5b1")


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draws the held-out losses over the tokens seen; dashed lines are the original's.

    Args:
        report: what is in `uptrain.json`.
        folder: for uptrain.png.

    Raises:
        OSError: the file cannot be written.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    tokens = [count / 1000 for count in report["tokens"]]
    for (name, text), color in zip(report["held_out"].items(), cycle(COLORS), strict=False):
        losses, reference, recovered = text["losses"], text["reference"], text["recovered"]
        label = f"{name}: {losses[0]:.2f} → {losses[-1]:.2f}"
        if reference is not None:
            label += f", original {reference:.2f}"
            axes.axhline(reference, color=color, linestyle="--", linewidth=1)
        if recovered is not None:
            label += f": {recovered:.0%} recovered"
        axes.axhline(losses[0], color=color, linestyle=":", linewidth=1)
        axes.plot(tokens, losses, color=color, marker=".", linewidth=1.5, label=label)
    axes.set_title(_title(report), loc="left", fontsize=10)
    axes.set_xlabel("thousand tokens of training")
    axes.set_ylabel("loss on text it was not trained on,\nnats per token (lower is better)")
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, edgecolor="none", framealpha=0.9)
    path = folder / "uptrain.png"
    figure.savefig(path, dpi=150)
    return [path]


def _title(report: Mapping[str, Any]) -> str:
    heads = report["num_kv_heads"]
    teacher = "" if report["teacher"] is None else ", taught by the original"
    return (
        f"Further training of {report['model']} ({heads} KV head{'s' * (heads > 1)}{teacher})\n"
        "dotted: before; dashed: the original"
    )
