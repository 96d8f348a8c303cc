"""`mqa plan`: how much memory a key-value cache takes, and what fits into a given memory."""

import argparse
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from mqa.plan import (
    DTYPE_BYTES,
    TEXTBOOK,
    TEXTBOOK_CONTEXT,
    CacheFormat,
    Estimate,
    Model,
    compare,
)
from mqa.plan_config import read_model
from mqa.table import format_table
from mqa.units import format_bytes, parse_size

HELP = "memory of the key-value cache with MHA, GQA, MQA or MLA, and what fits"
DESCRIPTION = """Compares the key-value cache of a model as it is with the same model as MHA, GQA
and MQA. The model is a Hugging Face config.json, a preset, or given by --layers, --heads and
--head-dim. Sizes are shown in decimal units (1 GB = 10^9 bytes)."""

DEFAULT_CONTEXT = 8192
DEFAULT_DTYPE = "bfloat16"
DTYPE_ALIASES = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp8": "float8_e4m3fn",
}


@dataclass(frozen=True)
class Preset:
    """A model to plan for without a file, at a context that makes the point."""

    model: Model
    context: int


PRESETS = {"textbook": Preset(TEXTBOOK, TEXTBOOK_CONTEXT)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line of `mqa plan`."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "config", nargs="?", type=Path, help="a config.json, or the folder that holds it"
    )
    model.add_argument("--preset", choices=PRESETS, help="textbook: 61 layers, 128 heads of 128")
    model.add_argument("--layers", type=positive, metavar="N")
    model.add_argument("--heads", type=positive, metavar="N", help="query heads")
    model.add_argument("--kv-heads", type=positive, metavar="N", help="default: --heads")
    model.add_argument("--head-dim", type=positive, metavar="N")
    model.add_argument(
        "--latent-dim",
        type=positive,
        metavar="N",
        help="latent attention (MLA): kv_lora_rank + qk_rope_head_dim",
    )
    cache = parser.add_argument_group("cache")
    cache.add_argument(
        "--dtype",
        choices=[*DTYPE_BYTES, *DTYPE_ALIASES],
        help=f"default: the model's, else {DEFAULT_DTYPE}; "
        "8-bit caches include a float32 scale per token and head, for keys and values each",
    )
    cache.add_argument(
        "--scale-per-head",
        action="store_true",
        help="8-bit caches: one calibrated scale per head instead, of negligible size",
    )
    cache.add_argument(
        "--context",
        type=positive,
        metavar="N",
        help=f"tokens per sequence; default: {DEFAULT_CONTEXT}, or the preset's",
    )
    cache.add_argument(
        "--batch", type=positive, default=1, metavar="N", help="sequences; default: 1"
    )
    cache.add_argument(
        "--memory",
        type=size,
        metavar="SIZE",
        help="what the cache may take, such as 24GiB or 80GB: adds what fits to the table",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print JSON with exact bytes")
    output.add_argument(
        "--plot", type=Path, metavar="FILE", help="write a bar chart, such as a PNG"
    )


def run(arguments: argparse.Namespace) -> None:
    """Prints the comparison and writes the plot.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: The model is missing, given twice, or cannot be described.
    """
    model = _model(arguments)
    preset = PRESETS.get(arguments.preset)
    context = arguments.context or (preset.context if preset else DEFAULT_CONTEXT)
    dtype = DTYPE_ALIASES.get(arguments.dtype, arguments.dtype) or model.dtype or DEFAULT_DTYPE
    cache_format = CacheFormat(dtype, scale_per_vector=not arguments.scale_per_head)
    estimates = compare(
        model, cache_format, context=context, batch=arguments.batch, memory=arguments.memory
    )
    title = (
        f"{model.num_layers} layers, {model.num_heads} heads, head_dim {model.head_dim}, "
        f"{dtype} cache, {arguments.batch} x {context:,} tokens"
    )
    if arguments.json:
        report = {
            "model": asdict(model),
            "format": asdict(cache_format),
            "context": context,
            "batch": arguments.batch,
            "memory": arguments.memory,
            "estimates": [asdict(estimate) for estimate in estimates],
        }
        print(json.dumps(report, indent=2))
    else:
        print(f"{title}\n\n{_table(estimates, arguments.memory)}")
        for note in (*_memory_note(arguments.memory, context, arguments.batch), *model.notes):
            print(f"\n{note}")
    if arguments.plot:
        from mqa.plan_plot import plot

        plot(estimates, title, arguments.memory, arguments.plot)


def positive(text: str) -> int:
    """A positive whole number of the command line."""
    if not re.fullmatch(r"\d+", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got '{text}'")
    return int(text)


def size(text: str) -> int:
    """A number of bytes of the command line."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _model(arguments: argparse.Namespace) -> Model:
    flags = {
        name: getattr(arguments, name)
        for name in ("layers", "heads", "kv_heads", "head_dim", "latent_dim")
        if getattr(arguments, name) is not None
    }
    sources = [arguments.config is not None, arguments.preset is not None, bool(flags)]
    if sum(sources) != 1:
        raise ValueError(
            "expected the model as a config.json, a --preset, or --layers, --heads and --head-dim, "
            f"got {'none' if not any(sources) else 'several'} of them"
        )
    if arguments.config is not None:
        return read_model(arguments.config)
    if arguments.preset is not None:
        return PRESETS[arguments.preset].model
    missing = [name for name in ("layers", "heads", "head_dim") if name not in flags]
    if missing:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise ValueError(f"expected also {names} to describe the model")
    return Model(
        num_layers=flags["layers"],
        num_heads=flags["heads"],
        num_kv_heads=flags.get("kv_heads", flags["heads"]),
        head_dim=flags["head_dim"],
        latent_dim=flags.get("latent_dim"),
    )


def _table(estimates: list[Estimate], memory: int | None) -> str:
    header = ["attention", "KV heads", "bytes per token", "cache", "vs MHA"]
    if memory is not None:
        header += ["max context", "max batch"]
    rows = []
    for estimate in estimates:
        row = [
            estimate.attention + (" (as configured)" if estimate.as_configured else ""),
            str(estimate.num_kv_heads),
            f"{estimate.token_bytes:,}",
            format_bytes(estimate.cache_bytes),
            f"1/{estimate.times_smaller_than_mha:.3g}",
        ]
        if memory is not None:
            row += [f"{estimate.max_context:,}", f"{estimate.max_batch:,}"]
        rows.append(row)
    return format_table(header, rows)


def _memory_note(memory: int | None, context: int, batch: int) -> list[str]:
    if memory is None:
        return []
    return [
        f"In {format_bytes(memory)} of memory for the cache: max context is in tokens per sequence "
        f"at batch {batch}, max batch in sequences of {context:,} tokens."
    ]
