"""The result of the demo as a table, a JSON file, a plot and an HTML page."""

import base64
import json
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

import jinja2
import torch

from mqa.bench.machine import processor
from mqa.table import format_table
from mqa.units import format_bytes
from plot import draw

TEMPLATE = Path(__file__).with_name("report.html.j2")

Samples = dict[str, list[float]]


@dataclass(frozen=True)
class VariantReport:
    """What was measured of one variant; speeds are tokens per second of each round, by engine."""

    name: str
    num_kv_heads: int
    token_bytes: int
    long_cache_bytes: int
    prefill: Samples
    decode: Samples
    long_decode: Samples
    nll: float
    text: str


@dataclass(frozen=True)
class Report:
    """What was measured, and on what."""

    machine: dict[str, str]
    prompt: str
    num_prompt_tokens: int
    num_new_tokens: int
    num_passage_tokens: int
    long_context: int
    checks: list[str]
    variants: list[VariantReport]


def describe_machine() -> dict[str, str]:
    """What the speeds depend on."""
    return {
        "date": date.today().isoformat(),
        "CPU": processor(),
        "threads": str(torch.get_num_threads()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "mqa": version("mqa"),
    }


def write_report(report: Report, folder: Path) -> list[Path]:
    """Writes report.json, report.png and report.html to `folder`; returns their paths."""
    paths = [folder / f"report.{suffix}" for suffix in ("json", "png", "html")]
    json_file, png_file, html_file = paths
    json_file.write_text(json.dumps(asdict(report), indent=2), encoding="utf-8")
    draw(report, png_file)
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"), autoescape=True)
    page = template.render(
        report=report,
        rows=table_rows(report),
        plot=base64.b64encode(png_file.read_bytes()).decode(),
    )
    html_file.write_text(page, encoding="utf-8")
    return paths


def format_report(report: Report) -> str:
    """The table and the texts for the terminal."""
    header = ["", *(variant.name for variant in report.variants)]
    rows = [[name, *values] for name, values in table_rows(report)]
    texts = [f"{variant.name}: {variant.text.strip()!r}" for variant in report.variants]
    return "\n\n".join([format_table(header, rows), *texts])


def table_rows(report: Report) -> list[tuple[str, list[str]]]:
    """The measured numbers: a row is a name and one value per variant."""
    variants = report.variants
    context = f"{report.long_context:,} tokens"
    rows = [
        ("KV heads", [str(v.num_kv_heads) for v in variants]),
        ("cache per token (float32)", [format_bytes(v.token_bytes) for v in variants]),
        (f"cache at {context}", [format_bytes(v.long_cache_bytes) for v in variants]),
    ]
    speeds = {
        "prefill": [v.prefill for v in variants],
        "decode": [v.decode for v in variants],
        f"decode at {context}": [v.long_decode for v in variants],
    }
    for name, samples in speeds.items():
        for engine in samples[0]:
            values = [f"{median(variant[engine]):.1f}" for variant in samples]
            rows.append((f"{name}, {engine} (tokens/s)", values))
    rows.append(("negative log-likelihood per token", [f"{v.nll:.3f}" for v in variants]))
    return rows
