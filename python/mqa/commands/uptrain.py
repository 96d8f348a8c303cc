"""`mqa uptrain`: continues the training of a model on a text, such as one that was converted."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mqa.commands.generate import share, threads, whole
from mqa.commands.plan import positive

if TYPE_CHECKING:
    from torch import Tensor

    from mqa import Decoder
    from mqa.tokenizer import Tokenizer
    from mqa.training.checkpoint import Identity
    from mqa.training.distillation import Distillation
    from mqa.training.schedule import Schedule
    from mqa.training.uptraining import Log, Uptraining

HELP = "further training of a converted model, with its original as a teacher"
DESCRIPTION = """Continues the training of a model on texts and writes a Hugging Face folder,
uptrain.json and the plot uptrain.png. Broken off, the same command line goes on at the last
checkpoint, to the same bits."""

DTYPES = ("float32", "bfloat16")
TRAINING_TEXT = "training text, last tenth"
REPORT, CHECKPOINT = "uptrain.json", "checkpoint.pt"
EVALUATIONS = 10  # by default, of a run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line of `mqa uptrain`."""
    parser.add_argument(
        "model", nargs="?", type=Path, help="a Hugging Face folder or a .gguf file"
    )
    parser.add_argument("output", nargs="?", type=Path, help="the folder to write")
    parser.add_argument(
        "--redraw", type=Path, metavar="FILE", help="only draw the plot of an uptrain.json again"
    )
    what = parser.add_argument_group("what to learn")
    what.add_argument(
        "--text",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="UTF-8 texts; their last tenths are held out",
    )
    what.add_argument("--tokens", type=positive, metavar="N", help="how many to learn from")
    what.add_argument(
        "--distill", type=Path, metavar="MODEL", help="a teacher to imitate, such as the original"
    )
    what.add_argument(
        "--temperature", type=positive_number, default=1.0, metavar="X", help="divides its logits"
    )
    what.add_argument(
        "--distill-weight",
        type=share,
        default=1.0,
        metavar="X",
        help="of the teacher, what is missing to 1 being that of the text; default: 1",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--dtype", choices=DTYPES, default="float32", help="default: float32")
    how.add_argument("--batch", type=positive, default=4, metavar="N", help="sequences; default: 4")
    how.add_argument(
        "--accumulation", type=positive, default=1, metavar="N", help="batches of a step; default: 1"
    )
    how.add_argument(
        "--context", type=positive, default=512, metavar="N", help="tokens of each; default: 512"
    )
    how.add_argument(
        "--learning-rate", type=positive_number, default=3e-4, metavar="X", help="default: 3e-4"
    )
    how.add_argument(
        "--warm-up",
        type=warm_up,
        default=0.1,
        metavar="X",
        help="part of the steps in which the rate rises; default: 0.1",
    )
    how.add_argument("--seed", type=whole, default=0, metavar="N", help="default: 0")
    how.add_argument("--threads", type=threads, metavar="N", help="to compute with")
    watch = parser.add_argument_group("what to measure and keep")
    watch.add_argument(
        "--evaluate", nargs="+", type=Path, default=[], metavar="FILE", help="more held-out texts"
    )
    watch.add_argument(
        "--reference",
        type=Path,
        metavar="MODEL",
        help="whose loss is the goal; default: that of --distill",
    )
    watch.add_argument(
        "--evaluate-every",
        type=positive,
        metavar="N",
        help=f"steps; default: a part of {EVALUATIONS} of them",
    )
    watch.add_argument(
        "--checkpoint-every", type=positive, default=20, metavar="N", help="steps; default: 20"
    )


def run(arguments: argparse.Namespace) -> None:
    """Trains, or goes on with it, and writes the model, the report and the plot.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: An option is missing or does not fit, a package is missing, the folder holds
            something else than this training, or the training went astray.
    """
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]

        from mqa.training.uptrain_plot import draw
    except ImportError as error:
        raise ValueError(f"the package {error.name} is missing: pip install mqa[train]") from error
    from mqa.training.checkpoint import check_identity
    from mqa.training.uptrain_report import make_report, read_report

    if arguments.redraw is not None:
        print(*draw(read_report(arguments.redraw), arguments.redraw.parent), sep="\n")
        return
    check_arguments(arguments)
    training = prepare(arguments)
    is_resumed = training.resume()
    report_file = arguments.output / REPORT
    if not is_resumed and report_file.exists():
        check_identity(report_file, read_report(report_file)["identity"], training.identity)
        print(f"mqa uptrain: {arguments.output} is finished already")
        return
    if not is_resumed:
        measure_reference(arguments, training)
        training.save()  # a folder that cannot be written is found now
    step, schedule = training.trainer.step, training.trainer.schedule
    with tqdm(
        total=schedule.steps * schedule.step_tokens,
        initial=step * schedule.step_tokens,
        unit="token",
        unit_scale=True,
    ) as bar:

        def show() -> None:
            bar.set_postfix(loss=f"{training.log.losses[-1]:.3f}", refresh=False)
            bar.update(schedule.step_tokens)

        try:
            training.run(show)
        except FloatingPointError as error:
            raise ValueError(f"{error}; expected a lower --learning-rate") from error
    finish(arguments, training)


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuses what needs no file to be read.

    Raises:
        OSError: The output folder cannot be made.
        ValueError: An argument is missing, or the output folder holds something else.
    """
    missing = [name for name in ("model", "output", "text", "tokens") if not vars(arguments)[name]]
    if missing:
        raise ValueError(f"expected MODEL OUTPUT --text FILE --tokens N, got no {missing[0]}")
    names = [path.name for path in arguments.evaluate]
    if len(set(names)) < len(names):
        raise ValueError(f"expected files of different names to --evaluate, got {names}")
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    ours = {REPORT, CHECKPOINT, f"{CHECKPOINT}.partial"}
    content = {path.name for path in folder.iterdir()}
    if content and not content & ours:
        raise ValueError(
            f"expected OUTPUT to be empty or of an earlier run of this command, got {folder} with "
            f"{min(content)}"
        )


def prepare(arguments: argparse.Namespace) -> Uptraining:
    """The training that the command line asks for.

    Raises:
        OSError: A file is missing.
        ValueError: Model, teacher, tokenizer, texts and numbers do not fit together.
    """
    import torch

    import mqa
    from mqa.tokenizer import load_tokenizer
    from mqa.training.corpus import Corpus
    from mqa.training.distillation import Distillation, check_teacher
    from mqa.training.schedule import Schedule
    from mqa.training.texts import beginning, read_tokens
    from mqa.training.trainer import Trainer, next_token_loss
    from mqa.training.uptraining import Uptraining

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    tokenizer = load_tokenizer(arguments.model)
    model = load_to_train(arguments.model)
    schedule = make_schedule(arguments, beginning(tokenizer))
