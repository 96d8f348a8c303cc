"""Runs `mqa cost`, `quality`, `convert` and `uptrain` for docs/evidence.md.

Every stage leaves its report and plots in a folder of its name.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import smollm2
import texts
from mqa.__main__ import Parser, exit_code

ROOT = Path(__file__).resolve().parents[2]
# Reports hold the command lines: what is below ROOT is named from there.
BUILD = Path("build/evidence")
DOCUMENT = Path("docs/evidence")
GEMMA_SHAPE = Path("examples/evidence/gemma_shape.py")
PASSAGE = Path("examples/demo/passage.txt")


@dataclass(frozen=True)
class Place:
    """Where things are, and whether a small form of all is enough."""

    quick: bool
    build: Path
    results: Path

    @property
    def model(self) -> str:
        """SmolLM2-135M-Instruct as a GGUF file."""
        return str(smollm2.install(Path("build/demo")))

    @property
    def texts(self) -> list[str]:
        """The Bible and the plays."""
        return [str(path) for path in texts.install(self.build / "texts").values()]

    def pick(self, quick: str, full: str) -> list[str]:
        """Options for the one or the other, as they stand on a command line."""
        return (quick if self.quick else full).split()


def mqa(name: str, place: Place, *arguments: str) -> None:
    """Runs a command of mqa that ends with its folder, and keeps its report and plots."""
    program(["-m", "mqa", *arguments])
    folder = place.build / name
    kept = place.results / name
    kept.mkdir(parents=True, exist_ok=True)
    for file in (*folder.glob("*.png"), *folder.glob(f"{arguments[0]}.json")):
        shutil.copy(file, kept)


def program(arguments: Sequence[str]) -> None:
    """Runs Python.

    Raises:
        ValueError: it failed, and has said why.
    """
    print(f"\n$ python {' '.join(arguments)}", flush=True)
    if code := subprocess.run([sys.executable, *arguments]).returncode:
        raise ValueError(f"expected exit code 0 from the command above, got {code}")


def cost(place: Place) -> None:
    """What a cache costs and fewer KV heads save."""
    mqa("cost", place, "cost", *place.pick("--quick", ""), "--output", str(place.build / "cost"))


def quality(place: Place) -> None:
    """What fewer KV heads cost when a decoder is trained with them."""
    options = place.pick("--quick", "--dtype bfloat16 --fewer-heads 1")
    output = str(place.build / "quality")
    mqa("quality", place, "quality", *options, "--text", *place.texts, "--output", output)


def convert(name: str, *options: str, place: Place) -> None:
    """What they cost when they are taken from SmolLM2."""
    _compare(name, place, place.model, *options)


def convert_gemma_shape(place: Place) -> None:
    """And from a small decoder of Gemma's shape, trained for that."""
    model = place.build / "gemma-shape"
    if not (model / "config.json").exists():
        steps = place.pick("--steps 100", "")
        program([str(GEMMA_SHAPE), str(model), *steps, "--text", *place.texts])
    _compare("convert-gemma-shape", place, str(model), "--kv-heads", "1")


def _compare(name: str, place: Place, model: str, *options: str) -> None:
    bible, shakespeare = place.texts
    sizes = place.pick("--calibration-tokens 4096 --evaluate-tokens 1024", "")
    held_out = ["--calibration", bible, "--evaluate", shakespeare]
    output = str(place.build / name)
    mqa(name, place, "convert", model, output, "--compare", *options, *held_out, *sizes)


def uptrain(place: Place) -> None:
    """How much of it further training wins back: SmolLM2 as MQA."""
    start, output = place.build / "smollm2-mqa", place.build / "uptrain"
    bible, _ = place.texts
    if not (start / "config.json").exists():
        into = [place.model, str(start), "--kv-heads", "1", "--calibration", bible]
        program(["-m", "mqa", "convert", *into])
    tokens = place.pick(
        "--tokens 16384 --context 256 --evaluate-every 8", "--tokens 300000 --evaluate-every 15"
    )
    mqa(
        "uptrain",
        place,
        "uptrain",
        str(start),
        str(output),
        *("--text", *place.texts),
        *("--evaluate", str(PASSAGE)),
        *("--distill", place.model),
        *("--dtype", "bfloat16"),
        *tokens,
    )


STAGES: dict[str, Callable[[Place], None]] = {
    "cost": cost,
    "quality": quality,
    "convert-9-3": lambda place: convert(
        "convert-9-3", "--from", "9", "--kv-heads", "3", place=place
    ),
    "convert-3-1": lambda place: convert("convert-3-1", "--kv-heads", "1", place=place),
    "convert-gemma-shape": convert_gemma_shape,
    "uptrain": uptrain,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stages: 0, or 2 if one failed."""
    parser = Parser(prog="evidence", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small form of all, in 15 minutes")
    parser.add_argument("--stage", nargs="+", choices=[*STAGES], default=[*STAGES])
    parser.add_argument(
        "--results", type=Path, help="folder for reports and plots; default: build/evidence/results"
    )
    parser.add_argument(
        "--redraw", action="store_true", help="draw the plots of docs/evidence again, no more"
    )
    arguments = parser.parse_args(argv)
    os.chdir(ROOT)
    return exit_code("evidence", partial(run, arguments))


def run(arguments: argparse.Namespace) -> None:
    """Runs the stages, or draws their plots again.

    Raises:
        ValueError: a stage failed.
    """
    if arguments.redraw:
        for stage in arguments.stage:
            file = DOCUMENT / stage / f"{stage.split('-')[0]}.json"
            program(["-m", "mqa", file.stem, "--redraw", str(file)])
        return
    build = BUILD / ("quick" if arguments.quick else "full")
    place = Place(arguments.quick, build, arguments.results or build / "results")
    for stage in arguments.stage:
        start = time.monotonic()
        STAGES[stage](place)
        print(f"\n{stage}: {time.monotonic() - start:.0f} s; results in {place.results / stage}")


if __name__ == "__main__":
    sys.exit(main())
