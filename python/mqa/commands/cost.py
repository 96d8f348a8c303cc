"""`mqa cost`: what a key-value cache costs on this machine, and what fewer KV heads save."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mqa.commands.plan import positive, size
from mqa.table import format_table

HELP = "work, time and memory of generation with a key-value cache: MHA, GQA and MQA, measured"
DESCRIPTION = """Measures generation with and without a cache (growth), decode steps with MHA, GQA
and MQA over contexts and batches (steps), and the memory of a cache against the formula (memory),
with decoders of random weights. Writes cost.json and the plots. Without options it measures a
decoder of a billion weights, for about ten minutes on two cores."""

SECTIONS = ("growth", "steps", "memory")
MEMORY_SHARE = 0.6  # of what is available: weights and activations take some, too
FILE = "cost.json"
FULL: dict[str, Any] = {
    "growth": {"longest": 4096, "points": 16, "budget": 4.0, "checked": 256},
    "contexts": (128, 512, 2048, 8192, 32768),
    "batches": (1, 4, 16, 64),
    "budget": 14.0,
    "memory": {"context": 8192, "batch": 2},
}
QUICK: dict[str, Any] = {
    "growth": {"longest": 2048, "points": 8, "budget": 0.6, "checked": 64},
    "contexts": (128, 2048, 8192),
    "batches": (1, 4),
    "budget": 1.5,
    "memory": {"context": 2048, "batch": 1},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line of `mqa cost`."""
    what = parser.add_argument_group("what to measure")
    what.add_argument(
        "--section", nargs="+", choices=SECTIONS, default=SECTIONS, help="default: all"
    )
    what.add_argument(
        "--contexts", nargs="+", type=positive, metavar="N", help="tokens in the cache, steps"
    )
    what.add_argument("--batches", nargs="+", type=positive, metavar="N", help="sequences, steps")
    what.add_argument(
        "--memory",
        type=size,
        metavar="SIZE",
        help=f"that a cache may take; default: {MEMORY_SHARE:.0%} of what is available",
    )
    what.add_argument(
        "--quick", action="store_true", help="a smaller decoder and a small grid, in a minute"
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--threads",
        type=positive,
        default=os.cpu_count(),
        metavar="N",
        help="default: one per core",
    )
    how.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="for the report and plots; default: mqa-cost, or that of the report to draw again",
    )
    how.add_argument(
        "--redraw", type=Path, metavar="FILE", help=f"draw a {FILE} again, without measuring"
    )


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the tables and writes the report.

    Raises:
        OSError: The report cannot be written, or read.
        ValueError: No cache fits, a tool is missing, or the file to draw is no report.
    """
    from mqa.cost.report import notes, tables
    from mqa.report_file import read_report

    if arguments.redraw:
        report = read_report(arguments.redraw, "mqa cost", {"papers"})
        folder = arguments.output or arguments.redraw.parent
        folder.mkdir(parents=True, exist_ok=True)
        written = []
    else:
        folder = arguments.output or Path("mqa-cost")
        folder.mkdir(parents=True, exist_ok=True)
        report = measure(arguments, folder / FILE)
        written = [folder / FILE]
    for table in tables(report):
        print(f"\n{table.title}\n\n{format_table(table.header, table.rows)}")
    print("", *notes(report), sep="\n")
    print(f"\nwrote {', '.join(map(str, [*written, *draw(report, folder)]))}")


def measure(arguments: argparse.Namespace, file: Path) -> dict[str, Any]:
    """The report, which is also written to the file after every section."""
    import torch

    from mqa.bench.device import Cpu
    from mqa.bench.machine import circumstances
    from mqa.cost.papers import PAPERS
    from mqa.report_file import write_report

    torch.set_num_threads(arguments.threads)
    cpu = Cpu()
    report: dict[str, Any] = {
        **circumstances(cpu),
        "threads": arguments.threads,
        "papers": PAPERS,
    }
    memory = arguments.memory or int(cpu.available_memory() * MEMORY_SHARE)
    for name, measure_section in sections(arguments, memory).items():
        if name in arguments.section:
            report[name] = asdict(measure_section())
            write_report(file, report)
    return report


def sections(arguments: argparse.Namespace, memory: int) -> dict[str, Callable[[], Any]]:
    """What measures each section.

    Args:
        arguments: The command line.
        memory: Bytes that a cache may take.
    """
    from mqa.cost import growth, shapes, steps
    from mqa.cost import memory as cache_memory

    grid = QUICK if arguments.quick else FULL
    make_config = shapes.small_config if arguments.quick else shapes.billion_config
    contexts = arguments.contexts or grid["contexts"]
    most_tokens = max(*contexts, grid["memory"]["context"])
    configs = {kind: make_config(n, most_tokens) for kind, n in shapes.KV_HEADS.items()}
    text = grid["growth"]
    return {
        "growth": lambda: growth.measure(
            growth.Plan(config=shapes.growth_config(text["longest"]), **text)
        ),
        "steps": lambda: steps.measure(
            steps.Plan(
                configs=configs,
                contexts=contexts,
                batches=arguments.batches or grid["batches"],
                memory=memory,
                budget=grid["budget"],
            )
        ),
        "memory": lambda: cache_memory.measure(
            cache_memory.Plan(configs=configs, memory=memory, **grid["memory"])
        ),
    }


def draw(report: dict[str, Any], folder: Path) -> list[Path]:
    """Writes the plots, where matplotlib is installed."""
    try:
        from mqa.cost import plots
    except ImportError as error:
        print(f"no plots: {error}", file=sys.stderr)
        return []
    return plots.draw(report, folder)
