"""`mqa uptrain`: continues the training of a model on a text, such as one that was converted."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from mqa.commands.generate import load_model, number, share, threads, whole
from mqa.commands.plan import positive
from mqa.replacing import UNFINISHED

if TYPE_CHECKING:
    from mqa.training.schedule import Schedule
    from mqa.training.uptraining import Uptraining

HELP = "further training of a converted model, with its original as a teacher"
DESCRIPTION = """Continues the training of a model on texts and writes a Hugging Face folder,
uptrain.json and the plot uptrain.png. Broken off, the same command line goes on at the last
checkpoint, to the same bits."""

DTYPES = ("float32", "bfloat16")
TRAINING_TEXT = "training text, last tenth"
COMMAND = "mqa uptrain"
REPORT, CHECKPOINT = "uptrain.json", "checkpoint.pt"
EVALUATIONS = 10  # by default, of a run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line of `mqa uptrain`."""
    parser.add_argument("model", nargs="?", type=Path, help="a Hugging Face folder or a .gguf file")
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
        "--accumulation",
        type=positive,
        default=1,
        metavar="N",
        help="batches of a step; default: 1",
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
        help="steps; default: a tenth of all",
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
        import tqdm  # type: ignore[import-untyped]  # noqa: F401

        from mqa.training.uptrain_plot import draw
    except ImportError as error:
        raise ValueError(f"the package {error.name} is missing: pip install mqa[train]") from error
    from mqa.report_file import read_report
    from mqa.training.checkpoint import check_identity
    from mqa.training.uptrain_report import KEYS

    if arguments.redraw is not None:
        report = read_report(arguments.redraw, COMMAND, KEYS)
        print(*draw(report, arguments.redraw.parent), sep="\n")
        return
    check_arguments(arguments)
    training = prepare(arguments)
    is_resumed = training.resume()
    report_file = arguments.output / REPORT
    if not is_resumed and report_file.exists():
        finished = read_report(report_file, COMMAND, KEYS)
        check_identity(report_file, finished["identity"], training.identity)
        print(f"mqa uptrain: {arguments.output} is finished already")
        return
    if not is_resumed:
        measure_reference(arguments, training)
        training.save()  # a folder that cannot be written is found now
    train(training)
    print(*finish(arguments, training), sep="\n")


def train(training: Uptraining) -> None:
    """Does the steps that are left, with a progress bar.

    Raises:
        OSError: A checkpoint cannot be written.
        ValueError: The training went astray.
    """
    from tqdm import tqdm

    schedule = training.trainer.schedule
    with tqdm(
        total=schedule.steps * schedule.step_tokens,
        initial=training.trainer.step * schedule.step_tokens,
        unit="token",
        unit_scale=True,
    ) as bar:

        def show() -> None:
            bar.set_postfix(loss=f"{training.log.losses[-1]:.3f}", refresh=False)
            bar.update(schedule.step_tokens)

        try:
            training.run(show)
        except FloatingPointError as error:
            raise ValueError(f"{error}; a lower --learning-rate may help") from error


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
    ours = {REPORT, CHECKPOINT, UNFINISHED}
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
    from mqa.training.checkpoint import digest
    from mqa.training.distillation import Distillation, check_teacher
    from mqa.training.texts import TextReader
    from mqa.training.trainer import Loss, Trainer, next_token_loss
    from mqa.training.uptraining import Uptraining

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    loaded = load_model(arguments.model, "float32")
    if arguments.context > loaded.max_position:
        raise ValueError(
            f"expected a --context of at most {loaded.max_position} (max_position of the model), "
            f"got {arguments.context}"
        )
    reader = TextReader(
        load_tokenizer(arguments.model), loaded.config.vocab_size, arguments.context
    )
    corpus = reader.corpus(arguments.text)
    texts = {TRAINING_TEXT: corpus.validation}
    texts |= {path.name: reader.held_out(path) for path in arguments.evaluate}
    schedule = make_schedule(arguments, reader.first_token)
    evaluate_every = arguments.evaluate_every or max(1, schedule.steps // EVALUATIONS)
    identity = {
        **asdict(schedule),
        "model": digest(loaded.state_dict()),
        "config": str(loaded.config),
        "text": digest({"text": corpus.training}),
        "held-out texts": digest(texts),
        "evaluate_every": evaluate_every,
        "reference": str(arguments.reference),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "mqa": version("mqa"),
    }
    loss: Loss = next_token_loss
    if arguments.distill is not None:
        teacher = load_model(arguments.distill, arguments.dtype)
        check_teacher(teacher, loaded)
        loss = Distillation(teacher, arguments.temperature, arguments.distill_weight)
        identity |= {
            "teacher": digest(teacher.state_dict()),
            "temperature": arguments.temperature,
            "distill_weight": arguments.distill_weight,
        }
    # What is loaded may be a view of the file.
    own = {name: weight.clone() for name, weight in loaded.state_dict().items()}
    return Uptraining(
        Trainer(mqa.Decoder.from_weights(loaded.config, own), corpus.training, schedule, loss),
        texts,
        identity,
        arguments.output / CHECKPOINT,
        evaluate_every,
        arguments.checkpoint_every,
    )


def make_schedule(arguments: argparse.Namespace, first_token: int | None) -> Schedule:
    """How long and how fast to train.

    Raises:
        ValueError: The tokens do not make a step.
    """
    from mqa.training.schedule import Schedule

    step_tokens = arguments.batch * arguments.context * arguments.accumulation
    if arguments.tokens < step_tokens:
        raise ValueError(
            f"expected at least {step_tokens} --tokens, a step (--batch times --context times "
            f"--accumulation), got {arguments.tokens}"
        )
    return Schedule(
        steps=arguments.tokens // step_tokens,
        batch=arguments.batch,
        context=arguments.context,
        learning_rate=arguments.learning_rate,
        accumulation=arguments.accumulation,
        warm_up=arguments.warm_up,
        dtype=arguments.dtype,
        seed=arguments.seed,
        first_token=first_token,
    )


def measure_reference(arguments: argparse.Namespace, training: Uptraining) -> None:
    """Puts the losses of the original, if one is named, into the log.

    Raises:
        OSError: It is missing.
        ValueError: It cannot be loaded, or has another vocabulary.
    """
    from mqa.training.distillation import check_teacher
    from mqa.training.trainer import validation_loss

    path = arguments.reference or arguments.distill
    if path is None:
        return
    trainer = training.trainer
    original = load_model(path, arguments.dtype)
    check_teacher(original, trainer.model)
    for name, tokens in training.texts.items():
        training.log.reference[name] = validation_loss(original, tokens, trainer.schedule)


def finish(arguments: argparse.Namespace, training: Uptraining) -> list[Path]:
    """Writes the model, the report and the plot, and gives the files; drops the checkpoint.

    Raises:
        OSError: That fails; the checkpoint is still there.
    """
    import mqa
    from mqa.report_file import write_report
    from mqa.training.uptrain_plot import draw
    from mqa.training.uptrain_report import make_report

    folder, report_file = arguments.output, arguments.output / REPORT
    mqa.save(training.trainer.model.requires_grad_(False), folder, source=arguments.model)
    report = make_report(training, arguments.model, arguments.distill)
    write_report(report_file, report)
    images = draw(report, folder)
    training.checkpoint.unlink()
    return [folder, report_file, *images]


def positive_number(text: str) -> float:
    """A positive number of the command line."""
    return number(text, float, lambda x: 0 < x < math.inf, "a positive number")


def warm_up(text: str) -> float:
    """A part of the steps of the command line."""
    return number(text, float, lambda x: 0 <= x < 1, "a number in [0, 1)")
