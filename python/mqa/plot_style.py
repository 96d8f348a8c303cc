"""What the plots of all commands have in common."""

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

COLORS = {"MHA": "#9aa5b1", "GQA": "#5b8def", "MQA": "#1f9d6b", "MLA": "#b3661b"}


def logarithmic(axes: Axes) -> None:
    """Both axes: powers of two from left to right, 1, 2, 5, 10, ... upwards."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,g}")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,g}")
    axes.minorticks_off()


def label_axes(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Small texts, a faint grid and no frame."""
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
