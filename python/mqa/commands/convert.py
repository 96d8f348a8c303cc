"""`mqa convert`: a model with fewer KV heads, or every way to get there side by side."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mqa.commands.generate import DTYPES, load_model, threads
from mqa.commands.plan import positive
from mqa.table import format_table

if TYPE_CHECKING:
    from torch import Tensor

    from mqa import Decoder
    from mqa.training.texts import TextReader

HELP = "fewer KV heads for a model: a new folder, or a comparison of the methods"
DESCRIPTION = """Merges the KV heads of a model and writes a Hugging Face folder. With --compare it
measures instead how likely held-out text is after every method, and writes OUTPUT/convert.json and
convert.png. The model is a Hugging Face folder or a .gguf file."""

METHODS = ("svd", "align", "mean", "first")
GROUPINGS = ("neighbours", "similar")
REPORT = "convert.json"
COMPARISON_FOLDER = Path("mqa-convert")
CONTEXT = 1024  # tokens of a piece of text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line of `mqa convert`."""
    parser.add_argument("model", nargs="?", type=Path, help="a folder or a .gguf file")
    parser.add_argument(
        "output",
        nargs="?",
        type=Path,
        help=f"the folder to write; default with --compare: {COMPARISON_FOLDER}",
    )
    parser.add_argument(
        "--kv-heads", type=positive, metavar="N", help="after the conversion; 1 is multi-query"
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--method", choices=METHODS, help="default: svd with --calibration, else align"
    )
    how.add_argument(
        "--groups",
        choices=GROUPINGS,
        help="which heads become one; default: neighbours",
    )
    how.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="UTF-8 text on which to see how alike heads are; its last tenth is left out",
    )
    how.add_argument(
        "--calibration-tokens", type=positive, default=16384, metavar="N", help="default: 16384"
    )
    how.add_argument(
        "--from",
        dest="start",
        type=positive,
        metavar="N",
        help="KV heads to start from, by repeating those of the model",
    )
    how.add_argument("--dtype", choices=DTYPES, default="float32", help="default: float32")
    how.add_argument("--threads", type=threads, metavar="N", help="to compute with")
    compare = parser.add_argument_group("comparison")
    compare.add_argument(
        "--compare",
        action="store_true",
        help="measure all methods on the last tenth of the calibration text",
    )
    compare.add_argument(
        "--evaluate", nargs="+", type=Path, default=[], metavar="FILE", help="and on other texts"
    )
    compare.add_argument(
        "--evaluate-tokens", type=positive, default=4096, metavar="N", help="default: 4096"
    )
    compare.add_argument(
        "--redraw", type=Path, metavar="FILE", help="draw a convert.json again, measure nothing"
    )


def run(arguments: argparse.Namespace) -> None:
    """Converts or compares.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: Options, model, tokenizer or texts do not fit together.
    """
    if arguments.redraw is not None:
        _redraw(arguments.redraw)
        return
    _check_options(arguments)
    model = _starting_point(arguments)
    if arguments.compare:
        _compare(arguments, model)
    else:
        _convert(arguments, model)


def _check_options(arguments: argparse.Namespace) -> None:
    if arguments.model is None or arguments.kv_heads is None:
        raise ValueError("expected a MODEL and --kv-heads N")
    if not arguments.compare:
        if arguments.output is None:
            raise ValueError("expected a folder OUTPUT to write the model to")
        if arguments.evaluate:
            raise ValueError("expected --evaluate with --compare")
        _prepare_folder(arguments.output)
        return
    if arguments.calibration is None:
        raise ValueError("expected a --calibration text with --compare")
    for option in ("method", "groups"):
        if vars(arguments)[option] is not None:
            raise ValueError(f"expected no --{option} with --compare, which tries all")
    names = [path.name for path in (arguments.calibration, *arguments.evaluate)]
    if len(set(names)) < len(names):
        raise ValueError(f"expected texts of different names, got {', '.join(names)}")


def _prepare_folder(folder: Path) -> None:
    """Makes it, which may fail, before a long computation does."""
    from mqa.replacing import UNFINISHED

    folder.mkdir(parents=True, exist_ok=True)
    content = {path.name for path in folder.iterdir()} - {UNFINISHED}
    if content:
        raise ValueError(
            f"expected OUTPUT to be a new or empty folder, got {folder} with {min(content)}"
        )


def _starting_point(arguments: argparse.Namespace) -> Decoder:
    """The model, with the KV heads of --from."""
    import torch

    import mqa

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model, arguments.dtype)
    start, before = arguments.start or model.num_kv_heads, model.num_kv_heads
    if start % before:
        raise ValueError(f"expected --from to be a multiple of {before}, got {start}")
    if start % arguments.kv_heads:
        raise ValueError(
            f"expected --kv-heads to divide {start}, the KV heads before the conversion, "
            f"got {arguments.kv_heads}"
        )
    return mqa.convert(model, start) if start != before else model


def _convert(arguments: argparse.Namespace, model: Decoder) -> None:
    import mqa
    from mqa.tokenizer import load_tokenizer

    calibration = None
    if arguments.calibration is not None:
        reader = _reader(arguments, model)
        calibration = _calibration(
            arguments, reader, reader.corpus([arguments.calibration]).training
        )
    source: Path | None = arguments.model
    try:
        load_tokenizer(arguments.model)
    except (OSError, ValueError) as error:
        print(f"mqa convert: writes no tokenizer, for {error}", file=sys.stderr)
        source = None
    method = arguments.method or ("align" if calibration is None else "svd")
    converted = mqa.convert(
        model,
        arguments.kv_heads,
        method,
        calibration=calibration,
        groups=arguments.groups or GROUPINGS[0],
    )
    mqa.save(converted, arguments.output, source)
    by = "weights" if calibration is None else f"{calibration.numel()} tokens"
    print(
        f"{arguments.output}: {model.num_kv_heads} -> {arguments.kv_heads} KV heads, {method} by "
        f"{by}"
    )


def _compare(arguments: argparse.Namespace, model: Decoder) -> None:
    from mqa.bench.device import DEVICES
    from mqa.bench.machine import circumstances
    from mqa.comparison import PUBLISHED, Comparison
    from mqa.comparison_report import draw, published_table, table
    from mqa.report_file import write_report
    from mqa.training.pieces import spread_pieces

    if model.num_kv_heads == arguments.kv_heads:
        raise ValueError(f"expected fewer --kv-heads than {model.num_kv_heads} to compare")
    folder = arguments.output or COMPARISON_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    begun = circumstances(DEVICES["cpu"]())
    reader = _reader(arguments, model)
    corpus = reader.corpus([arguments.calibration])
    calibration = _calibration(arguments, reader, corpus.training)
    texts = {arguments.calibration.name: corpus.validation}
    texts |= {path.name: reader.held_out(path) for path in arguments.evaluate}
    pieces = {
        name: spread_pieces(tokens, arguments.evaluate_tokens, reader.context, reader.first_token)
        for name, tokens in texts.items()
    }
    comparison = Comparison(model, arguments.kv_heads, calibration, pieces)
    report: dict[str, Any] = {
        **begun,
        "model": arguments.model.stem
        if arguments.model.is_file()
        else arguments.model.resolve().name,
        "kv_heads": {"before": model.num_kv_heads, "after": arguments.kv_heads},
        "calibration_tokens": calibration.numel(),
        "texts": {name: part.numel() for name, part in pieces.items()},
        "original": comparison.original(),
        "rotation": comparison.rotation(),
        "conversions": [],
        "published": PUBLISHED,
    }
    for conversion in comparison.conversions():
        report["conversions"].append(conversion)
        print(f"mqa convert: {conversion}", file=sys.stderr)
    write_report(folder / REPORT, report)
    rotation = report["rotation"]
    print(format_table(*table(report)))
    print(
        f"\nThe turns of align alone change logits by {rotation['largest_difference']:.2g} at "
        f"most; the largest is {rotation['largest_logit']:.3g}.\n"
    )
    print(format_table(*published_table(report)) + "\n")
    print(folder / REPORT, *draw(report, folder), sep="\n")


def _reader(arguments: argparse.Namespace, model: Decoder) -> TextReader:
    from mqa.tokenizer import load_tokenizer
    from mqa.training.texts import TextReader

    context = min(CONTEXT, model.max_position)
    return TextReader(load_tokenizer(arguments.model), model.config.vocab_size, context)


def _calibration(arguments: argparse.Namespace, reader: TextReader, tokens: Tensor) -> Tensor:
    from mqa.training.pieces import spread_pieces

    return spread_pieces(tokens, arguments.calibration_tokens, reader.context, reader.first_token)


def _redraw(file: Path) -> None:
    from mqa.comparison_report import KEYS, draw
    from mqa.report_file import read_report

    print(*draw(read_report(file, "mqa convert", KEYS), file.parent), sep="\n")
