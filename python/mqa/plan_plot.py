"""The bar chart of `mqa plan`."""

from collections.abc import Sequence
from pathlib import Path

from mqa.plan import Estimate
from mqa.units import format_bytes


def plot(estimates: Sequence[Estimate], title: str, memory: int | None, path: Path) -> None:
    """Draws one bar per kind of attention, and the memory as a line.

    Args:
        estimates: The bars, from top to bottom.
        title: What all bars have in common.
        memory: Bytes the cache may take, or None.
        path: The image; its suffix chooses the format.

    Raises:
        OSError: The file cannot be written.
        ValueError: matplotlib is missing, or does not know the suffix.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("expected matplotlib, which draws plots: pip install matplotlib") from None

    from mqa.plot_style import COLORS

    names = [
        f"{e.attention}, {e.num_kv_heads} KV head{'s' * (e.num_kv_heads > 1)}"
        + ("\n(as configured)" if e.as_configured else "")
        for e in estimates
    ]
    figure = Figure(figsize=(8, 1.2 + 0.55 * len(estimates)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(
        names,
        [e.cache_bytes / 1e9 for e in estimates],
        color=[COLORS[e.attention] for e in estimates],
    )
    if memory is not None:
        label = f"memory: {format_bytes(memory)}"
        axes.axvline(memory / 1e9, color="#c0392b", linestyle="--", linewidth=1, label=label)
        axes.legend(frameon=False, loc="lower right")
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    labels = [format_bytes(estimate.cache_bytes) for estimate in estimates]
    axes.bar_label(bars, labels, padding=5, bbox=white)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("key-value cache in GB")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
