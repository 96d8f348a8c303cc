"""The plots of `mqa cost`, from the JSON of a report alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from mqa.cost import fit
from mqa.cost.grid import BASELINE, FEWEST, Grid
from mqa.cost.report import WAYS, shape_text
from mqa.plot_style import COLORS, label_axes, logarithmic
from mqa.units import format_bytes

KIND_COLORS = {**COLORS, "GQA-8": COLORS["GQA"], "GQA-4": "#1d3557"}
WAY_COLORS = {"with_cache": COLORS["MQA"], "without_cache": "#c0392b"}
GROWTHS = {"with_cache": "linear", "without_cache": "quadratic"}
DARKEST = 12.0  # a speed-up; the lightest is none


def draw(report: dict[str, Any], folder: Path) -> list[Path]:
    """Draws the sections that were measured; returns the images' paths."""
    figures = {}
    if "growth" in report:
        figures["growth"] = _growth_figure(report["growth"])
    if "steps" in report:
        grid = Grid(report["steps"]["points"])
        figures["speedup"] = _speedup_figure(report["steps"], grid)
        figures["step_times"] = _step_times_figure(report["steps"], grid)
    if "memory" in report:
        figures["cache_memory"] = _memory_figure(report["memory"])
    paths = []
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=130)
        paths.append(path)
    return paths


def _growth_figure(growth: dict[str, Any]) -> Figure:
    """The time of one token, and that of all."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    one, all_of_them = figure.subplots(1, 2)
    lengths = growth["lengths"]
    for name, text in WAYS.items():
        way, color = growth[name], WAY_COLORS[name]
        one.plot(lengths, [s * 1e3 for s in way["seconds"]], "o", ms=4, color=color, label=text)
        fitted = fit.evaluate(way["coefficients"], lengths)
        one.plot(lengths, [s * 1e3 for s in fitted], color=color, linewidth=1)
        label = f"{text}: like $n^{{{way['exponent']:.2f}}}$ at the end ({GROWTHS[name]}: "
        label += f"$n^{'1' if name == 'with_cache' else '2'}$)"
        all_of_them.plot(lengths, way["totals"], marker="o", ms=3, color=color, label=label)
    for axes in (one, all_of_them):
        logarithmic(axes)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    label_axes(one, "one more token (lines: fitted)", "tokens so far, n", "ms for the n-th token")
    label_axes(all_of_them, "the whole text", "tokens of the text, n", "s for all n tokens")
    figure.suptitle(
        f"A cache turns quadratic work into linear work\n{shape_text(growth)}", fontsize=10
    )
    return figure


def _speedup_figure(steps: dict[str, Any], grid: Grid) -> Figure:
    """How many times as fast MQA is, and the cache's share, which explains it."""
    size = (2.5 + 1.7 * len(grid.contexts), 1.9 + 0.55 * len(grid.batches))
    figure = Figure(figsize=(max(size[0], 8), size[1]), layout="constrained")
    left, right = figure.subplots(1, 2)
    speedups = [[grid.speedup(c, b) for c in grid.contexts] for b in grid.batches]
    norm = LogNorm(1 / DARKEST, DARKEST)
    _heat_map(left, grid, speedups, "{:.2f}x", cmap="BrBG", norm=norm)
    left.set_title(f"{FEWEST}: times as fast as {BASELINE}", loc="left", fontsize=9)
    shares = [[grid.cache_share(c, b) for c in grid.contexts] for b in grid.batches]
    _heat_map(right, grid, shares, "{:.0%}", cmap="Blues", vmin=0, vmax=1.6)
    right.set_title(f"the cache's share of the bytes that {BASELINE} reads", loc="left", fontsize=9)
    figure.suptitle(
        f"Fewer KV heads pay where the cache outweighs the weights\n{shape_text(steps)}",
        fontsize=10,
    )
    return figure


def _heat_map(
    axes: Axes, grid: Grid, values: Sequence[Sequence[float | None]], text: str, **colors: Any
) -> None:
    """One field per context and batch; one without a value says that MHA does not fit."""
    numbers = [[float("nan") if value is None else value for value in row] for row in values]
    axes.imshow(numbers, aspect="auto", origin="lower", **colors)
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            label = f"{BASELINE} does\nnot fit" if value is None else text.format(value)
            small = value is None
            axes.text(column, row, label, ha="center", va="center", fontsize=6 if small else 8)
    axes.set_xticks(range(len(grid.contexts)), [f"{c:,}" for c in grid.contexts], fontsize=8)
    axes.set_yticks(range(len(grid.batches)), [f"{b:,}" for b in grid.batches], fontsize=8)
    axes.set_xlabel("tokens in the cache of each sequence", fontsize=9)
    axes.set_ylabel("sequences (batch)", fontsize=9)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _step_times_figure(steps: dict[str, Any], grid: Grid) -> Figure:
    """One panel per batch, one line per kind of attention."""
    count = len(grid.batches)
    figure = Figure(figsize=(1 + 3.1 * count, 4), layout="constrained")
    panels = figure.subplots(1, count, squeeze=False, sharey=True)[0]
    for axes, batch in zip(panels, grid.batches, strict=True):
        for kind in grid.kinds:
            _times_line(axes, grid, kind, batch)
        logarithmic(axes)
        axes.set_xticks(grid.contexts)
        axes.tick_params("x", rotation=45)
        label = "ms for a step" if batch == grid.batches[0] else ""
        title = f"{batch} sequence{'s' * (batch > 1)}"
        label_axes(axes, title, "tokens in the cache of each", label)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8
    )
    figure.suptitle(
        f"Time of a decode step, one token per sequence (dotted: reading weights and cache "
        f"alone)\n{shape_text(steps)}",
        fontsize=10,
    )
    return figure


def _times_line(axes: Axes, grid: Grid, kind: str, batch: int) -> None:
    """A line ends where the cache no longer fits."""
    times = {c: s for c in grid.contexts if (s := grid.seconds(kind, c, batch)) is not None}
    reads = [grid.point(kind, context, batch)["read_seconds"] for context in times]
    contexts, color = [*times], KIND_COLORS[kind]
    axes.plot(
        contexts, [s * 1e3 for s in times.values()], marker="o", ms=4, color=color, label=kind
    )
    axes.plot(contexts, [s * 1e3 for s in reads], ":", linewidth=1, color=color)


def _memory_figure(memory: dict[str, Any]) -> Figure:
    """Bars: measured; lines: the formula."""
    uses = [use for use in memory["uses"] if use["measured_bytes"] is not None]
    figure = Figure(figsize=(7, 1.3 + 0.5 * len(uses)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(
        [
            f"{use['kind']}, {use['num_kv_heads']} KV head{'s' * (use['num_kv_heads'] > 1)}"
            for use in uses
        ],
        [use["measured_bytes"] / 1e6 for use in uses],
        color=[KIND_COLORS[use["kind"]] for use in uses],
    )
    axes.plot(
        [use["formula_bytes"] / 1e6 for use in uses],
        range(len(uses)),
        "|",
        color="#333333",
        ms=20,
        label="formula",
    )
    labels = [
        f"{format_bytes(use['measured_bytes'])} "
        f"({use['measured_bytes'] / use['formula_bytes'] - 1:+.2%})"
        for use in uses
    ]
    axes.bar_label(bars, labels, padding=6, fontsize=8)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.invert_yaxis()
    axes.margins(x=0.25)
    title = (
        f"Memory that the process took for a cache of {memory['batch']} x "
        f"{memory['context']:,} tokens\n{shape_text(memory)}"
    )
    label_axes(axes, title, "MB", "")
    return figure
