"""`mqa quality`: what fewer KV heads cost, in small decoders trained from scratch."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mqa.commands.plan import positive
from mqa.table import format_table

if TYPE_CHECKING:
    from mqa import DecoderConfig
    from mqa.training.schedule import Schedule

HELP = "trains small decoders of equal size from scratch: MHA, GQA, MQA; loss against cache"
DESCRIPTION = """Trains small decoders on the bytes of a text, with several seeds each: MHA, GQA,
MQA, and MHA with fewer heads. All have as many parameters: what fewer heads free goes into the
feed-forward network. The last tenth of the text is for validation. Writes quality.json after each
run, and goes on there when it is called again; then the plots."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line of `mqa quality`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", type=Path, nargs="+", metavar="FILE", help="texts to learn")
    what.add_argument(
        "--redraw", type=Path, metavar="FILE", help="draw the plots of a quality.json again"
    )
    parser.add_argument("--quick", action="store_true", help="smaller, shorter, within a minute")
    model = parser.add_argument_group("models")
    _add_number(model, "--layers", 4)
    _add_number(model, "--heads", 8, "of MHA; ")
    _add_number(model, "--head-dim", 32)
    _add_number(model, "--width", 256, "of the residual stream; ")
    _add_number(model, "--mlp", 704, "width of MHA's feed-forward network; ")
    model.add_argument(
        "--kv-heads", type=positive, nargs="+", default=[4, 2, 1], metavar="N", help="of GQA, MQA"
    )
    model.add_argument(
        "--fewer-heads",
        type=positive,
        nargs="+",
        default=[2, 1],
        metavar="N",
        help="of further MHA decoders",
    )
    training = parser.add_argument_group("training")
    _add_number(training, "--steps", 600)
    _add_number(training, "--batch", 8, "sequences in a step; ")
    _add_number(training, "--context", 256, "bytes in a sequence; ")
    _add_number(training, "--seeds", 3, "runs of each model; ")
    training.add_argument("--learning-rate", type=float, default=1e-3, help="at its peak")
    training.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: by autocast"
    )
    training.add_argument("--threads", type=positive, metavar="N")
    speed = parser.add_argument_group("decode speed")
    _add_number(speed, "--decode-batch", 8)
    _add_number(speed, "--decode-context", 4096)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="default: mqa-quality, or that of the report to draw again",
    )


QUICK = {
    "layers": 2,
    "heads": 4,
    "width": 128,
    "mlp": 256,
    "kv_heads": [2, 1],
    "fewer_heads": [1],
    "steps": 60,
    "seeds": 2,
    "decode_context": 1024,
}
# What may change between calls that add to one report.
NO_SETTINGS = {"command", "text", "redraw", "quick", "output", "seeds"}
NO_SETTINGS |= {"kv_heads", "fewer_heads", "decode_batch", "decode_context"}


def run(arguments: argparse.Namespace) -> None:
    """Trains, prints the tables, and writes the report and the plots.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: The options do not make a model or do not fit the text, or the folder holds
            results of others.
    """
    from mqa.quality.plots import draw
    from mqa.quality.report import KEYS, paper_table, table
    from mqa.report_file import read_report

    is_old = arguments.redraw is not None
    folder = arguments.output or (arguments.redraw.parent if is_old else Path("mqa-quality"))
    folder.mkdir(parents=True, exist_ok=True)
    if is_old:
        report = read_report(arguments.redraw, "mqa quality", KEYS)
    else:
        report = _measure(arguments, folder / "quality.json")
    print(f"{format_table(*table(report))}\n\n{format_table(*paper_table())}")
    print("\nwrote", ", ".join(map(str, draw(report, folder))))


def _measure(arguments: argparse.Namespace, file: Path) -> dict[str, Any]:
    import torch

    from mqa.quality.run import decode_speed, describe, train_all
    from mqa.quality.variants import variants
    from mqa.report_file import write_report
    from mqa.training.corpus import Corpus, byte_tokens

    if arguments.quick:
        vars(arguments).update(QUICK)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    schedule = _schedule(arguments)
    configs = variants(_mha(arguments), arguments.kv_heads, arguments.fewer_heads)
    text = b"\n".join(path.read_bytes() for path in arguments.text)
    corpus = Corpus.split(byte_tokens(text), arguments.context)
    report = _begin(file, arguments, text)
    report["variants"] = {name: describe(config) for name, config in configs.items()}

    def save() -> None:
        write_report(file, report)

    save()  # found impossible now rather than after the training
    seeds = list(range(arguments.seeds))
    train_all(configs, corpus, schedule, seeds, report["runs"], save)
    report["tokens_per_second"] = decode_speed(
        configs, arguments.decode_batch, arguments.decode_context
    )
    save()
    return report


def _begin(file: Path, arguments: argparse.Namespace, text: bytes) -> dict[str, Any]:
    """The report so far: without a run, or with those of an earlier call."""
    import torch

    from mqa.bench.device import DEVICES
    from mqa.bench.machine import circumstances
    from mqa.quality.report import KEYS
    from mqa.report_file import read_report

    settings = {name: value for name, value in vars(arguments).items() if name not in NO_SETTINGS}
    settings |= {
        "threads": torch.get_num_threads(),
        "text": hashlib.sha256(text).hexdigest(),
        "bytes": len(text),
    }
    now = circumstances(DEVICES["cpu"]())
    if not file.exists():
        return {
            **now,
            "settings": settings,
            "variants": {},
            "runs": [],
            "tokens_per_second": {},
        }
    report = read_report(file, "mqa quality", KEYS)
    for name, value in settings.items():
        if report["settings"][name] != value:
            raise ValueError(
                f"expected the {name} of the runs in {file}, {report['settings'][name]}, "
                f"got {value}: another --output begins anew"
            )
    return report | {"command": now["command"]}


def _schedule(arguments: argparse.Namespace) -> Schedule:
    from mqa.training.schedule import Schedule

    return Schedule(
        steps=arguments.steps,
        batch=arguments.batch,
        context=arguments.context,
        learning_rate=arguments.learning_rate,
        dtype=arguments.dtype,
    )


def _mha(arguments: argparse.Namespace) -> DecoderConfig:
    from mqa import DecoderConfig
    from mqa.training.corpus import BYTE_VOCABULARY

    return DecoderConfig(
        num_layers=arguments.layers,
        hidden_size=arguments.width,
        num_heads=arguments.heads,
        num_kv_heads=arguments.heads,
        head_dim=arguments.head_dim,
        intermediate_size=arguments.mlp,
        vocab_size=BYTE_VOCABULARY,
        max_position=arguments.context,
    )


def _add_number(group: argparse._ArgumentGroup, option: str, default: int, text: str = "") -> None:
    group.add_argument(
        option, type=positive, default=default, metavar="N", help=f"{text}default: {default}"
    )
