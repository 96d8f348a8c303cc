"""Tables and sentences of a report, from its JSON alone."""

from collections.abc import Iterator
from typing import Any

from mqa.bench.report import Table
from mqa.cost.grid import BASELINE, FEWEST, Grid
from mqa.units import format_bytes

# How many times as fast as MHA is MQA: from, and in words.
BANDS = (
    (0.0, "less than 1.1 times"),
    (1.1, "1.1 to 1.4 times (the textbooks' up to 40 %)"),
    (1.4, "1.4 to 3 times"),
    (3.0, "3 times and more"),
)
WAYS = {"with_cache": "with a cache", "without_cache": "without a cache"}


def tables(report: dict[str, Any]) -> list[Table]:
    """Those of the sections that were measured."""
    found = []
    if "growth" in report:
        found.append(_growth_table(report["growth"]))
    if "steps" in report:
        grid = Grid(report["steps"]["points"])
        found.append(_steps_table(report["steps"], grid))
        if len(grid.same_tokens()) > 1:
            found.append(_same_tokens_table(grid))
    if "memory" in report:
        found += [_memory_table(report["memory"]), _textbook_table(report["memory"])]
    return found


def notes(report: dict[str, Any]) -> list[str]:
    """What the tables do not hold."""
    return [
        *(_growth_notes(report["growth"]) if "growth" in report else ()),
        *(_steps_notes(report["steps"]) if "steps" in report else ()),
        *_papers_notes(report),
    ]


def shape_text(part: dict[str, Any]) -> str:
    """The shape of a section's decoders in a few words."""
    shape = part["shape"]
    return (
        f"{shape['num_layers']} layers of width {shape['hidden_size']:,}, "
        f"{shape['num_heads']} query heads of {shape['head_dim']}, {part['dtype']}"
    )


def polynomial_text(coefficients: list[float]) -> str:
    """In microseconds, such as `20.7 n + 0.00406 n^2 us`."""
    powers = ["", " n", *(f" n^{power}" for power in range(2, len(coefficients)))]
    terms = [f"{c * 1e6:.3g}{n}" for c, n in zip(coefficients, powers, strict=True) if c]
    return f"{' + '.join(terms)} us".replace("+ -", "- ")


def _growth_table(growth: dict[str, Any]) -> Table:
    ways = [growth[name] for name in WAYS]
    rows = [
        [
            f"{length:,}",
            *(f"{way['seconds'][i] * 1e3:,.2f}" for way in ways),
            *(f"{way['totals'][i]:,.3g}" for way in ways),
            f"{ways[1]['totals'][i] / ways[0]['totals'][i]:,.1f}",
        ]
        for i, length in enumerate(growth["lengths"])
    ]
    header = ["tokens n", "n-th: with, ms", "without, ms", "all n: with, s", "without, s", "times"]
    return Table(f"growth: generation of n tokens; {shape_text(growth)}", header, rows)


def _growth_notes(growth: dict[str, Any]) -> Iterator[str]:
    last = growth["lengths"][-1]
    for name, text in WAYS.items():
        way = growth[name]
        yield (
            f"n tokens {text}: {polynomial_text(way['total_coefficients'])}; from "
            f"{growth['exponent_from']:,} to {last:,} tokens like n^{way['exponent']:.2f}; "
            f"{growth['checked']:,} tokens took {way['generated_seconds']:.2f} s, "
            f"{way['interpolated_seconds']:.2f} s by the sum over the timed lengths"
        )


def _steps_table(steps: dict[str, Any], grid: Grid) -> Table:
    rows = []
    for batch in grid.batches:
        for context in grid.contexts:
            times = [grid.seconds(kind, context, batch) for kind in grid.kinds]
            speedup = grid.speedup(context, batch)
            rows.append(
                [
                    f"{batch} x {context:,}",
                    format_bytes(grid.point(BASELINE, context, batch)["cache_bytes"]),
                    f"{grid.cache_share(context, batch):.0%}",
                    *("-" if time is None else f"{time * 1e3:,.1f}" for time in times),
                    f"{speedup:.2f}" if speedup else "-",
                    f"{grid.expected_speedup(context, batch):.2f}",
                ]
            )
    header = [
        "batch x context",
        f"{BASELINE} cache",
        "of its bytes",
        *(f"{kind}, ms" for kind in grid.kinds),
        f"{FEWEST} faster",
        "by bytes",
    ]
    return Table(f"steps: time of a decode step; {shape_text(steps)}", header, rows)


def _bands(grid: Grid) -> Iterator[str]:
    """Where MQA is how many times as fast as MHA, and the cache's share that explains it."""
    for (start, name), end in zip(BANDS, [*(b[0] for b in BANDS[1:]), float("inf")], strict=True):
        inside = [at for at in grid.compared() if start <= (grid.speedup(*at) or 0) < end]
        if inside:
            shares = [grid.cache_share(*at) for at in inside]
            ends = dict.fromkeys(f"{share:.0%}" for share in (min(shares), max(shares)))
            where = ", ".join(f"{batch} x {context:,}" for context, batch in inside)
            yield (
                f"speed of {FEWEST} over {BASELINE}: {name} at {where}, where the cache is "
                f"{' to '.join(ends)} of the bytes that {BASELINE} reads"
            )


def _same_tokens_table(grid: Grid) -> Table:
    places = grid.same_tokens()
    rows = [
        [
            f"{batch} x {context:,}",
            *(f"{(grid.seconds(kind, context, batch) or 0) * 1e3:,.1f}" for kind in grid.kinds),
        ]
        for context, batch in places
    ]
    header = ["batch x context", *(f"{kind}, ms" for kind in grid.kinds)]
    tokens = places[0][0] * places[0][1]
    return Table(f"steps: {tokens:,} tokens in the cache, in several shapes", header, rows)


def _steps_notes(steps: dict[str, Any]) -> Iterator[str]:
    yield from _bands(Grid(steps["points"]))
    yield (
        f"by bytes: what the bytes of weights and cache say; reading them alone, at "
        f"{steps['bandwidth'] / 1e9:.1f} GB/s, is the least that a step can take"
    )
    left_out = [p for p in steps["points"] if p["seconds"] is None]
    if left_out:
        names = [
            f"{p['kind']} {p['batch']} x {p['context']:,} ({format_bytes(p['cache_bytes'])})"
            for p in left_out
        ]
        yield f"- does not fit {format_bytes(steps['memory'])}: {', '.join(names)}"


def _memory_table(memory: dict[str, Any]) -> Table:
    rows = []
    for use in memory["uses"]:
        measured = use["measured_bytes"]
        fits = measured is not None
        rows.append(
            [
                use["kind"],
                str(use["num_kv_heads"]),
                f"{use['formula_bytes']:,}",
                f"{measured:,}" if fits else "does not fit",
                f"{measured / use['formula_bytes'] - 1:+.2%}" if fits else "-",
                f"{use['max_context']:,}",
            ]
        )
    title = (
        f"memory: cache of {memory['batch']} x {memory['context']:,} tokens; {shape_text(memory)}"
    )
    limit = f"context that fits {format_bytes(memory['memory'])}"
    header = ["attention", "KV heads", "bytes by formula", "of the process", "difference", limit]
    return Table(title, header, rows)


def _textbook_table(memory: dict[str, Any]) -> Table:
    rows = [
        [
            estimate["attention"],
            str(estimate["num_kv_heads"]),
            format_bytes(estimate["cache_bytes"]),
            f"1/{estimate['times_smaller_than_mha']:.3g}",
        ]
        for estimate in memory["textbook"]
    ]
    title = f"memory: the textbook's 128 heads, {memory['textbook_context']:,} tokens, by formula"
    return Table(title, ["attention", "KV heads", "cache", "vs MHA"], rows)


def _papers_notes(report: dict[str, Any]) -> Iterator[str]:
    """What each paper says, and what was measured of the same kind here."""
    likes = (_like_shazeer, _like_pope, _like_flash_decoding)
    for paper, like in zip(report["papers"], likes, strict=True):
        here = like(report)
        said = f"{paper['name']} ({paper['source']}): {paper['claim']}"
        yield f"{said}; here: {here}" if here else said


def _like_shazeer(report: dict[str, Any]) -> str:
    """The shortest context at the largest batch that was measured with it."""
    if "steps" not in report:
        return ""
    grid = Grid(report["steps"]["points"])
    if not grid.compared():
        return ""
    context, batch = min(grid.compared(), key=lambda at: (at[0], -at[1]))
    slow, fast = (
        (grid.seconds(kind, context, batch) or 0) / batch * 1e6 for kind in (BASELINE, FEWEST)
    )
    return f"batch {batch:,}, length {context:,}: {slow:,.0f} us, {fast:,.0f} us"


def _like_pope(report: dict[str, Any]) -> str:
    if "memory" not in report:
        return ""
    contexts = {use["kind"]: use["max_context"] for use in report["memory"]["uses"]}
    return f"{contexts[FEWEST] / contexts[BASELINE]:.3g} times in the same memory"


def _like_flash_decoding(report: dict[str, Any]) -> str:
    if "steps" not in report:
        return ""
    grid = Grid(report["steps"]["points"])
    places = grid.same_tokens()
    if len(places) < 2:
        return ""
    times = [grid.seconds(FEWEST, *at) or 0 for at in places]
    return f"{FEWEST}: {min(times) * 1e3:,.0f} to {max(times) * 1e3:,.0f} ms per step"
