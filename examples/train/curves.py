"""The plot: the losses of all variants."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from mqa.training.from_scratch import Losses

COLORS = ("#e0a458", "#5b8def", "#1f9d6b")


def draw_curves(losses: Mapping[str, Losses], path: Path) -> None:
    """Draws validation losses as lines, and those of the training batches as dots."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for (name, curve), color in zip(losses.items(), COLORS, strict=True):
        label = f"{name}: {curve.validation[-1]:.3f} at the end"
        axes.plot(curve.steps, curve.validation, color=color, linewidth=1.5, label=label)
        axes.plot(curve.steps, curve.training, ".", color=color, markersize=3, alpha=0.5)
    axes.set_title("loss, nats per byte; lines: validation, dots: training", loc="left")
    axes.set_xlabel("step")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=100)
