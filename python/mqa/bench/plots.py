"""The plots of `mqa bench`: time against G, S and B, bytes of the cache, roofline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mqa.bench.cases import DTYPE_BYTES, QUANTISED, Case
from mqa.bench.floor import Floor
from mqa.bench.measure import Result
from mqa.bench.peers import CONTENDERS, OURS, OURS_PACKED, OURS_UNQUANTISED
from mqa.bench.summary import best_peer
from mqa.plot_style import label_axes, logarithmic

COLORS = {
    OURS: "#1f9d6b",
    "SDPA": "#5b8def",
    "SDPA folded": "#1d3557",
    "FlexAttention": "#e0a458",
    "matmul+softmax": "#9aa5b1",
    "onnxruntime": "#b3661b",
    "vLLM": "#c0392b",
    "SDPA flash": "#7b2cbf",
    "FlashAttention": "#e63946",
    "FlashInfer": "#457b9d",
}
OTHER_STYLES = {OURS_UNQUANTISED: ":", OURS_PACKED: "-."}  # ours, too
FLOOR_COLOR = "#333333"
DTYPE_COLORS = {
    "float32": "#5b8def",
    "float16": "#e0a458",
    "bfloat16": "#1f9d6b",
    "int8": "#c0392b",
    "float8_e4m3fn": "#9b59b6",
}
AXES = {
    "group": "query heads per KV head (G)",
    "context": "tokens in the cache (S)",
    "batch": "sequences (B)",
}
# Which of several series to show: the one nearest to this in most fields.
TYPICAL = {"group": 32, "head_dim": 128, "context": 8192, "batch": 1, "is_cold": True}
HEADS = 32


def draw(results: Sequence[Result], floors: Sequence[Floor], folder: Path) -> list[Path]:
    """Draws all plots that the results allow; returns the images' paths."""
    decode = [r for r in results if not r.case.is_causal and OURS in r.seconds]
    figures = {
        f"time_by_{name}": _time_figure(decode, name)
        for name in AXES
        if len({getattr(result.case, name) for result in decode}) > 1
    }
    figures["cache_bytes"] = _cache_figure()
    if any(OURS in result.seconds for result in results):
        figures["roofline"] = _roofline_figure(results, floors)
    paths = []
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=130)
        paths.append(path)
    return paths


def series(results: Sequence[Result], axis: str) -> list[Result]:
    """The results that differ only in `axis`: the longest series, of those the most typical."""
    groups: dict[Case, list[Result]] = {}
    for result in results:
        unchanging: Any = {axis: 0}
        groups.setdefault(replace(result.case, **unchanging), []).append(result)

    def rank(case: Case) -> tuple[int, int, int]:
        agreeing = sum(
            getattr(case, name) == value for name, value in TYPICAL.items() if name != axis
        )
        return len(groups[case]), agreeing, case.threads

    longest = groups[max(groups, key=rank)]
    return sorted(longest, key=lambda result: getattr(result.case, axis))


def _time_figure(results: Sequence[Result], axis: str) -> Figure:
    """One panel per dtype, one line per contender."""
    dtypes = [d for d in DTYPE_BYTES if any(r.case.cache_dtype == d for r in results)]
    figure = Figure(figsize=(1 + 3.6 * len(dtypes), 4.4), layout="constrained")
    panels = figure.subplots(1, len(dtypes), squeeze=False)[0]
    for panel, dtype in zip(panels, dtypes, strict=True):
        chosen = series([r for r in results if r.case.cache_dtype == dtype], axis)
        _time_panel(panel, chosen, axis)
    lines: dict[str, Artist] = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        lines.update(zip(labels, handles, strict=True))
    figure.legend(
        [*lines.values()], [*lines], loc="outside lower center", ncols=8, frameon=False, fontsize=8
    )
    return figure


def _time_panel(axes: Axes, results: Sequence[Result], axis: str) -> None:
    for name in CONTENDERS:
        timed = [result for result in results if name in result.seconds]
        if timed:
            axes.plot(
                [getattr(result.case, axis) for result in timed],
                [result.seconds[name].median * 1e3 for result in timed],
                marker="o",
                markersize=3,
                linewidth=2.2 if name == OURS else 1.2,
                color=COLORS.get(name, COLORS[OURS]),
                linestyle=OTHER_STYLES.get(name, "-"),
                label=name,
            )
    axes.plot(
        [getattr(result.case, axis) for result in results],
        [result.bound.seconds * 1e3 for result in results],
        color=FLOOR_COLOR,
        linestyle="--",
        linewidth=1,
        label="floor",
    )
    case = results[0].case
    sizes = {"group": "G", "head_dim": "D", "context": "S", "batch": "B"}
    fixed = [f"{s} {getattr(case, name):,}" for name, s in sizes.items() if name != axis]
    temperature = "cold" if case.is_cold else "warm"
    threads = f"{case.threads} thread{'s' * (case.threads > 1)}"
    title = f"{case.cache_dtype} cache\n{', '.join([*fixed, threads, temperature])}"
    logarithmic(axes)
    label_axes(axes, title, AXES[axis], "ms per decode step")


def _cache_figure() -> Figure:
    """Keys and values of one layer and one sequence, with one KV head and with one per head."""
    figure = Figure(figsize=(6, 4.4), layout="constrained")
    axes = figure.subplots()
    contexts = [2**i for i in range(9, 18)]
    for dtype in ("float32", "bfloat16", *QUANTISED[:1]):
        case = Case(dtype, HEADS, 128, 1, 1, 1, 1, is_cold=False)
        for heads, style in ((1, "-"), (HEADS, "--")):
            axes.plot(
                contexts,
                [heads * context * case.cache_bytes / 1e6 for context in contexts],
                color=DTYPE_COLORS[dtype],
                linestyle=style,
                label=f"{'MQA' if heads == 1 else f'MHA, {HEADS} heads'}, {dtype}",
            )
    logarithmic(axes)
    axes.legend(frameon=False, fontsize=8)
    label_axes(axes, "cache of one layer and sequence, D 128", AXES["context"], "MB")
    return figure


def _roofline_figure(results: Sequence[Result], floors: Sequence[Floor]) -> Figure:
    """One panel per thread count: ours filled, the best peer hollow, under the machine's roofs."""
    timed = [result for result in results if OURS in result.seconds]
    counts = sorted({result.case.threads for result in timed})
    figure = Figure(figsize=(1 + 5 * len(counts), 4.6), layout="constrained")
    for axes, threads in zip(
        figure.subplots(1, len(counts), squeeze=False)[0], counts, strict=True
    ):
        chosen = [result for result in timed if result.case.threads == threads]
        logarithmic(axes)
        for dtype, color in DTYPE_COLORS.items():
            of_dtype = [result for result in chosen if result.case.cache_dtype == dtype]
            _roofline_points(axes, of_dtype, dtype, color)
        _roofs(axes, [floor for floor in floors if floor.threads == threads][-1], chosen)
        axes.legend(frameon=False, fontsize=7, loc="lower right")
        title = f"{threads} thread{'s' * (threads > 1)}; filled: {OURS}, hollow: best peer"
        label_axes(axes, title, "flops per byte", "GFLOP/s")
    return figure


def _roofline_points(axes: Axes, results: Sequence[Result], dtype: str, color: str) -> None:
    if not results:
        return
    intensity = [result.case.flops / result.case.bytes for result in results]
    speed = [result.case.flops / result.seconds[OURS].median / 1e9 for result in results]
    axes.scatter(intensity, speed, s=14, color=color, label=dtype)
    for result, x in zip(results, intensity, strict=True):
        peer = best_peer(result)
        if peer:
            y = result.case.flops / result.seconds[peer].median / 1e9
            axes.scatter(x, y, s=14, facecolors="none", edgecolors=color, linewidths=0.8)


def _roofs(axes: Axes, floor: Floor, results: Sequence[Result]) -> None:
    intensity = [result.case.flops / result.case.bytes for result in results]
    low, high = min(intensity) / 2, max(intensity) * 2
    for (name, rate), style in zip(floor.slopes().items(), ("-", ":"), strict=False):
        bandwidth = rate / 1e9
        label = f"{name}: {bandwidth:.0f} GB/s"
        ends = [low * bandwidth, high * bandwidth]
        axes.plot([low, high], ends, color=FLOOR_COLOR, linestyle=style, linewidth=1, label=label)
    for name, peak in floor.roofs().items():
        axes.axhline(peak / 1e9, color=FLOOR_COLOR, linewidth=0.6, linestyle="-.")
        label = f"{name}: {peak / 1e9:,.0f}"
        axes.annotate(label, (low, peak / 1e9), fontsize=7, va="bottom")
    axes.set_ylim(top=3 * max(floor.roofs().values()) / 1e9)
