"""`mqa bench`: attention and its peers on this machine, against what the machine can do."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mqa.commands.plan import DTYPE_ALIASES, positive, size
from mqa.table import format_table

if TYPE_CHECKING:
    from mqa.bench.report import Report
    from mqa.bench.run import Plan

HELP = "speed of attention on this machine, against other implementations and the machine's limits"
DESCRIPTION = """Times mqa.attention and every other implementation that is installed in turn, on
the same data, after comparing their results. Writes report.json, report.html and the plots. Without
options it measures a large grid, which takes hours; options select a part of it."""

TABLES = ("decode", "prefill", "append", "overhead", "training", "flash-decoding")
DEFAULT_TABLES = {
    "cpu": TABLES[:5],
    "cuda": ("decode", "prefill", "append", "training", "flash-decoding"),
}
DTYPES = ("float32", "bfloat16", "float16", "int8", "float8_e4m3fn")
PREFILL_DTYPES = ("float32", "bfloat16", "float16")
QUICK_DEADLINE = 40  # seconds: leaves time to start, to end the case at hand and to draw

CORES = os.cpu_count() or 1
FULL: dict[str, dict[str, Any]] = {
    "cpu": {
        "dtype": DTYPES,
        "group": (1, 4, 8, 16, 32, 71, 128),
        "head_dim": (64, 128, 256),
        "context": (512, 8192, 65536),
        "batch": (1, 8),
        "threads": sorted({1, CORES}),
        "prefill": (512, 1024, 2048, 4096, 8192),
        "prefill_group": (8, 32),
        "prefill_head_dim": (128,),
        "appended": ((1, 1), (1, 512), (1, 8192)),  # sequences, tokens of each
        "trained": (1024, 4096),
        "budget": 1.0,
    },
    "cuda": {
        "dtype": ("bfloat16", "float16", "int8", "float8_e4m3fn"),
        "group": (1, 8, 16, 32, 71, 128),
        "head_dim": (64, 128, 256),
        "context": (1024, 8192, 32768, 131072),
        "batch": (1, 8, 64),
        "threads": (1,),
        "prefill": (512, 1024, 2048, 4096, 8192),
        "prefill_group": (8, 32),
        "prefill_head_dim": (64, 128),
        "appended": ((1, 1), (64, 1), (1, 8192), (64, 1024)),
        "trained": (1024, 4096, 16384),
        "budget": 0.3,
    },
}
QUICK: dict[str, dict[str, Any]] = {
    "cpu": {
        "dtype": ("float32", "bfloat16", "int8"),
        "group": (1, 8, 32, 128),
        "head_dim": (128,),
        "context": (512, 8192),
        "batch": (1,),
        "threads": (CORES,),
        "prefill": (512,),
        "prefill_group": (8,),
        "prefill_head_dim": (128,),
        "appended": ((1, 1), (1, 512), (1, 8192)),
        "trained": (512,),
        "budget": 0.2,
    },
    "cuda": {
        "dtype": ("bfloat16", "int8"),
        "group": (8, 32, 128),
        "head_dim": (128,),
        "context": (8192, 32768),
        "batch": (1, 64),
        "threads": (1,),
        "prefill": (2048,),
        "prefill_group": (8,),
        "prefill_head_dim": (128,),
        "appended": ((1, 1), (64, 1024)),
        "trained": (2048,),
        "budget": 0.1,
    },
}
SLOW_TO_PREPARE = "FlexAttention"  # compiles each case for seconds
# Names of the command line, which needs neither torch nor the peers to be imported.
PEER_NAMES = {
    "cpu": ("SDPA", "SDPA folded", "FlexAttention", "matmul+softmax", "onnxruntime", "vLLM"),
    "cuda": (
        "SDPA",
        "SDPA flash",
        "SDPA folded",
        "FlexAttention",
        "matmul+softmax",
        "FlashAttention",
        "FlashInfer",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line of `mqa bench`."""
    parser.add_argument(
        "--device", choices=[*FULL], default="cpu", help="cuda: the current GPU, as graph replays"
    )
    grid = parser.add_argument_group("what to measure")
    grid.add_argument(
        "--table",
        nargs="+",
        choices=TABLES,
        help="default: all but flash-decoding, whose grid of shapes a GPU gets instead of overhead",
    )
    dtypes = [*DTYPES, *DTYPE_ALIASES]
    grid.add_argument(
        "--dtype", nargs="+", choices=dtypes, help="of the cache; queries of 8-bit ones: bfloat16"
    )
    numbers = {
        "--group": "query heads over the one KV head",
        "--head-dim": "elements of a head",
        "--context": "tokens in the cache, decode",
        "--batch": "sequences, decode",
        "--threads": f"default: {' and '.join(map(str, FULL['cpu']['threads']))}; with cuda: 1",
        "--prefill": "lengths of causal prefills",
    }
    for option, text in numbers.items():
        grid.add_argument(option, nargs="+", type=positive, metavar="N", help=text)
    peers = dict.fromkeys(name for names in PEER_NAMES.values() for name in names)
    grid.add_argument("--peer", nargs="+", choices=[*peers], help="whom to compare with")
    temperature = grid.add_mutually_exclusive_group()
    temperature.add_argument(
        "--cold", action="store_true", help="only caches read from memory; on cuda the default"
    )
    temperature.add_argument("--warm", action="store_true", help="only one cache, read repeatedly")
    grid.add_argument(
        "--quick", action="store_true", help="a small grid without FlexAttention, within a minute"
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--budget",
        type=seconds,
        metavar="SECONDS",
        help="of timed calls per case, all contenders together; default: "
        + ", ".join(f"{grid['budget']:g} ({device})" for device, grid in FULL.items()),
    )
    how.add_argument(
        "--cold-bytes",
        type=size,
        metavar="SIZE",
        help="of all caches that calls take turns over; default: 1GiB, or four times a GPU's L2",
    )
    how.add_argument(
        "--output",
        type=Path,
        default=Path("mqa-bench"),
        metavar="FOLDER",
        help="for the report and plots; default: mqa-bench",
    )


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the tables and writes the report.

    Raises:
        OSError: The report cannot be written.
        ValueError: The tool that measures the machine, or the GPU, is missing.
    """
    start = time.monotonic()
    from mqa.bench import run as runner
    from mqa.bench.device import DEVICES
    from mqa.bench.machine import describe_machine, versions
    from mqa.bench.report import Report, notes, tables

    device = DEVICES[arguments.device]()
    arguments.output.mkdir(parents=True, exist_ok=True)
    plan = make_plan(arguments, device.cold_bytes)
    report = Report(describe_machine(device), versions(), ["mqa", *sys.argv[1:]])
    file = arguments.output / "report.json"
    try:
        runner.run(plan, report, lambda: save(report, file), start, device)
    finally:  # whatever breaks it off, hours of measurements are kept
        save(report, file)
    for table in tables(report):
        print(f"\n{table.title}\n\n{format_table(table.header, table.rows)}")
    print("", *notes(report), sep="\n")
    written = [file, *draw(report, arguments.output)]
    print(f"\nwrote {', '.join(map(str, written))}")


def make_plan(arguments: argparse.Namespace, cold_bytes: int) -> Plan:
    """What the command line asks for.

    Args:
        arguments: The command line.
        cold_bytes: Of all caches that calls take turns over, where it does not say.
    """
    from mqa.bench.cases import AppendCase, decode_cases, flash_decoding_cases, prefill_cases
    from mqa.bench.measure import Options
    from mqa.bench.peers import CONTENDERS, PEERS
    from mqa.bench.run import Plan
    from mqa.bench.training import training_cases

    grid = {**(QUICK if arguments.quick else FULL)[arguments.device], **_given(arguments)}
    if arguments.group:
        grid["prefill_group"] = arguments.group
    if arguments.head_dim:
        grid["prefill_head_dim"] = arguments.head_dim
    dtypes = list(dict.fromkeys(DTYPE_ALIASES.get(dtype, dtype) for dtype in grid["dtype"]))
    plain_dtypes = [dtype for dtype in dtypes if dtype in PREFILL_DTYPES]
    threads = grid["threads"]

    decode = decode_cases(
        cache_dtypes=dtypes,
        groups=grid["group"],
        head_dims=grid["head_dim"],
        contexts=grid["context"],
        batches=grid["batch"],
        threads=threads,
        temperatures=[is_cold for is_cold in (True, False) if not _is_excluded(arguments, is_cold)],
    )
    prefill = prefill_cases(
        cache_dtypes=plain_dtypes,
        groups=grid["prefill_group"],
        head_dims=grid["prefill_head_dim"],
        lengths=grid["prefill"],
        batches=(1,),
        threads=threads,
    )
    flash_decoding = flash_decoding_cases(
        cache_dtypes=[dtype for dtype in dtypes if dtype != "float32"], threads=threads
    )
    peers = arguments.peer or [
        name
        for name in PEER_NAMES[arguments.device]
        if not (arguments.quick and name == SLOW_TO_PREPARE)
    ]
    ours = [name for name in CONTENDERS if name not in PEERS]
    wanted = arguments.table or DEFAULT_TABLES[arguments.device]
    return Plan(
        cases=[
            *(prefill if "prefill" in wanted else ()),
            *(decode if "decode" in wanted else ()),
            *(flash_decoding if "flash-decoding" in wanted else ()),
        ],
        append=[
            AppendCase(dtype, batch, tokens, count)
            for count in threads
            for dtype in dtypes
            for batch, tokens in grid["appended"]
            if "append" in wanted
        ],
        overhead=[
            (dtype, count) for count in threads for dtype in plain_dtypes if "overhead" in wanted
        ],
        training=[
            *(
                training_cases(dtypes=plain_dtypes, lengths=grid["trained"], threads=threads)
                if "training" in wanted
                else ()
            )
        ],
        options=Options([*ours, *peers], grid["budget"], arguments.cold_bytes or cold_bytes),
        deadline=QUICK_DEADLINE if arguments.quick else None,
    )


def save(report: Report, file: Path) -> None:
    """Writes the report as JSON."""
    from mqa.bench.report import to_json

    file.write_text(json.dumps(to_json(report), indent=1), encoding="utf-8")


def draw(report: Report, folder: Path) -> list[Path]:
    """Writes the plots and the page that holds them; without matplotlib, a page without plots."""
    from mqa.bench.page import render

    try:
        from mqa.bench import plots
    except ImportError as error:
        print(f"no plots: {error}", file=sys.stderr)
        images = []
    else:
        images = plots.draw(report.results, report.floors, folder)
    page = folder / "report.html"
    page.write_text(render(report, images), encoding="utf-8")
    return [*images, page]


def seconds(text: str) -> float:
    """A positive number of seconds of the command line."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got '{text}'")
    return value


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(arguments).items() if name in FULL["cpu"] and value}


def _is_excluded(arguments: argparse.Namespace, is_cold: bool) -> bool:
    if is_cold:
        return arguments.warm
    return arguments.cold or (arguments.device == "cuda" and not arguments.warm)
