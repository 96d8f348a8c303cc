"""Trains a small decoder from scratch on the CPU: as MHA, GQA and MQA with as many parameters each.

Prints a table, and writes train.json and, with the loss curves of the three, train.png.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path

import torch

from corpus import read_text
from curves import draw_curves
from mqa import DecoderConfig
from mqa.__main__ import Parser, exit_code
from mqa.bench.machine import processor
from mqa.quality.variants import num_parameters, variants
from mqa.table import format_table
from mqa.training.corpus import BYTE_VOCABULARY, Corpus, byte_tokens
from mqa.training.from_scratch import Losses, train_new
from mqa.training.schedule import Schedule

ROOT = Path(__file__).resolve().parents[2]
# By so much may losses with mqa's attention and with PyTorch's differ at any logged step.
TOLERANCE = 1e-3


class CheckError(Exception):
    """Two losses that must be equal differ."""


@dataclass(frozen=True)
class Variant:
    """What was trained, and its losses with mqa's attention and, to compare, with PyTorch's."""

    config: DecoderConfig
    num_parameters: int
    losses: Losses
    torch_losses: Losses | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command: 0, 1 if losses differ that must be equal, 2 after bad input."""
    arguments = parse_arguments(argv)
    try:
        return exit_code("train", partial(run, arguments))
    except CheckError as error:
        print(f"train: {error}", file=sys.stderr)
        return 1


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="train",
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--text", type=Path, help="a file to learn, not the King James Bible")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--log-every", type=int, default=20, help="steps between logged losses")
    parser.add_argument("--batch", type=int, default=16, help="sequences in a step")
    parser.add_argument("--context", type=int, default=128, help="bytes in a sequence")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="at its peak")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--gqa-kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=32)
    parser.add_argument("--width", type=int, default=192, help="of the residual stream")
    parser.add_argument("--mlp", type=int, default=512, help="width of MHA's feed-forward network")
    parser.add_argument(
        "--compare",
        action="store_true",
        help=f"train with PyTorch's attention too; fail if a loss differs by over {TOLERANCE}",
    )
    parser.add_argument("--output", type=Path, default=ROOT / "build/train")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    """Trains all variants, and writes what came of it.

    Raises:
        CheckError: the attentions do not give the same losses.
        OSError: the text cannot be read or the results cannot be written.
        ValueError: the options do not make a model or do not fit the text.
    """
    schedule = Schedule(
        steps=arguments.steps,
        batch=arguments.batch,
        context=arguments.context,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
    )
    configs = variants(
        DecoderConfig(
            num_layers=arguments.layers,
            hidden_size=arguments.width,
            num_heads=arguments.heads,
            num_kv_heads=arguments.heads,
            head_dim=arguments.head_dim,
            intermediate_size=arguments.mlp,
            vocab_size=BYTE_VOCABULARY,
            max_position=arguments.context,
        ),
        [arguments.gqa_kv_heads, 1],
    )
    corpus = Corpus.split(byte_tokens(read_text(arguments.text)), schedule.context)
    arguments.output.mkdir(parents=True, exist_ok=True)
    json_file, png_file = arguments.output / "train.json", arguments.output / "train.png"
    for path in (json_file, png_file):
        path.touch()  # found impossible now rather than after the training

    results = {
        name: train_variant(name, config, corpus, schedule, arguments)
        for name, config in configs.items()
    }
    write_json(json_file, results, schedule)
    draw_curves({name: variant.losses for name, variant in results.items()}, png_file)
    print(format_results(results))
    print(f"\n{json_file}\n{png_file}")
    check_equal(results)


def train_variant(
    name: str,
    config: DecoderConfig,
    corpus: Corpus,
    schedule: Schedule,
    arguments: argparse.Namespace,
) -> Variant:
    """Trains with mqa's attention and, to compare, once more with PyTorch's."""
    runs = {name: config}
    if arguments.compare:
        runs[f"{name}, torch"] = replace(config, attention_impl="torch")
    losses = [
        train_new(config, corpus, schedule, log_every=arguments.log_every, name=title)[1]
        for title, config in runs.items()
    ]
    return Variant(config, num_parameters(config), losses[0], *losses[1:])


def write_json(path: Path, results: dict[str, Variant], schedule: Schedule) -> None:
    """Writes everything: what the losses depend on, and the losses."""
    machine = {
        "date": date.today().isoformat(),
        "CPU": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    everything = {
        "machine": machine,
        "schedule": asdict(schedule),
        "variants": {name: asdict(variant) for name, variant in results.items()},
    }
    path.write_text(json.dumps(everything, indent=1), encoding="utf-8")


def format_results(results: dict[str, Variant]) -> str:
    """The table: a variant a row."""
    header = ["", "KV heads", "MLP", "parameters", "seconds", "training", "validation"]
    rows = [
        [
            name,
            f"{variant.config.num_kv_heads}",
            f"{variant.config.intermediate_size}",
            f"{variant.num_parameters:,}",
            f"{variant.losses.seconds:.0f}",
            f"{variant.losses.training[-1]:.4f}",
            f"{variant.losses.validation[-1]:.4f}",
        ]
        for name, variant in results.items()
    ]
    return format_table(header, rows)


def check_equal(results: dict[str, Variant]) -> None:
    """Compares the losses of the two attentions, where there are both, and says how they differ.

    Raises:
        CheckError: by more than `TOLERANCE` at a logged step.
    """
    for name, variant in results.items():
        if variant.torch_losses is None:
            continue
        difference = largest_difference(variant.losses, variant.torch_losses)
        if not difference <= TOLERANCE:  # NaN differs from everything
            raise CheckError(
                f"{name}: expected losses that differ by at most {TOLERANCE} from those with "
                f"PyTorch's attention, got a difference of {difference:.2e}"
            )
        print(
            f"{name}: losses differ by at most {difference:.1e} from those of PyTorch's attention"
        )


def largest_difference(ours: Losses, theirs: Losses) -> float:
    """Between two runs with the same schedule; NaN if either has one."""
    a, b = (torch.tensor([x.training, x.validation], dtype=torch.float64) for x in (ours, theirs))
    return (a - b).abs().max().item()


if __name__ == "__main__":
    sys.exit(main())
