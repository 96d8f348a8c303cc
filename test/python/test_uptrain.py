"""`mqa uptrain`: what is learnt and written, going on after a break, refusals."""

import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mqa
from commands import exit_code
from decoders import all_logits
from mqa.tokenizer import load_tokenizer
from mqa.training.checkpoint import load_checkpoint, save_checkpoint
from mqa.training.schedule import Schedule
from mqa.training.trainer import validation_loss
from mqa.training.uptrain_report import recovered
from test_generate_command import save_model, save_tokenizer

LINES = [f"{n} bottles of beer on the wall, {n} bottles of beer." for n in range(300)]
OPTIONS: dict[str, object] = {
    "tokens": 12 * 48 + 7,
    "batch": 2,
    "context": 24,
    "learning-rate": 0.003,
    "threads": 1,
    "evaluate-every": 5,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, "mqa", which was converted from "original", and texts."""
    world = tmp_path_factory.mktemp("world")
    save_model(world / "original", num_kv_heads=6)
    save_tokenizer(world / "original")
    converted = mqa.convert(mqa.load(world / "original"), 1)
    mqa.save(converted, world / "mqa", source=world / "original")
    (world / "text.txt").write_text("\n".join(LINES))
    (world / "other.txt").write_text("The keeper climbed the steps of the lighthouse. " * 20)
    return world


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def arguments(world: Path, output: Path, *more: object, **changes: object) -> list[str]:
    """The command line of a small run."""
    options = OPTIONS | {name.replace("_", "-"): value for name, value in changes.items()}
    words = [world / "mqa", output, "--text", world / "text.txt", *more]
    words += [word for name, value in options.items() for word in (f"--{name}", value)]
    return ["uptrain", *map(str, words)]


def report(output: Path) -> dict[str, Any]:
    return json.loads((output / "uptrain.json").read_text())


@pytest.fixture(scope="module")
def taught(world: Path) -> Path:
    """What a run with the original as teacher has written."""
    output = world / "taught"
    more = ("--distill", world / "original", "--evaluate", world / "other.txt")
    assert exit_code(*arguments(world, output, *more)) == 0
    return output


def test_measures_the_model_that_it_writes(world: Path, taught: Path) -> None:
    written = report(taught)
    assert written["tokens"] == [0, 5 * 48, 10 * 48, 12 * 48]
    assert len(written["training"]) == 12
    assert written["num_kv_heads"] == 1
    assert written["command"][0] == "mqa"
    assert list(written["held_out"]) == ["training text, last tenth", "other.txt"]
    text = load_tokenizer(taught).encode((world / "other.txt").read_text())
    first, plan = text[0], Schedule(**written["schedule"])
    assert plan.first_token == first
    torch.set_num_threads(1)
    losses = [
        validation_loss(mqa.load(world / name), torch.tensor(text), plan)
        for name in ("mqa", "taught", "original")
    ]
    curve = written["held_out"]["other.txt"]
    assert [curve["losses"][0], curve["losses"][-1], curve["reference"]] == losses
    assert sorted(path.name for path in taught.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "uptrain.json",
        "uptrain.png",
    ]


def test_the_last_tenth_is_held_out(world: Path, taught: Path) -> None:
    tokens = load_tokenizer(taught).encode("\n".join(LINES))
    held_out = torch.tensor(tokens[len(tokens) - len(tokens) // 10 :])
    torch.set_num_threads(1)
    loss = validation_loss(mqa.load(taught), held_out, Schedule(**report(taught)["schedule"]))
    assert report(taught)["held_out"]["training text, last tenth"]["losses"][-1] == loss


def test_learns_from_the_teacher(world: Path, taught: Path) -> None:
    """What it trains on is how far it is from the teacher, not from the text."""
    losses = report(taught)["training"]
    assert max(losses) < 2 < report(taught)["held_out"]["other.txt"]["losses"][0]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


def test_recovered_share() -> None:
    assert recovered([6.0, 5.0, 4.0], 2.0) == 0.5
    assert recovered([6.0, 7.0], 2.0) == -0.25
    assert recovered([6.0, 4.0], None) is None
    assert recovered([2.0, 1.0], 2.0) is None


def test_what_it_writes_is_exported_with_equal_logits(taught: Path, tmp_path: Path) -> None:
    model = mqa.load(taught)
    tokens = torch.arange(40).view(2, 20)
    mqa.export_torchscript(model, tmp_path / "model.pt")
    script = torch.jit.load(tmp_path / "model.pt")
    assert torch.equal(all_logits(script, tokens), all_logits(model, tokens))


def test_a_finished_run_is_left_alone(
    world: Path, taught: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in taught.iterdir()}
    more = ("--distill", world / "original", "--evaluate", world / "other.txt")
    assert exit_code(*arguments(world, taught, *more)) == 0
    assert capsys.readouterr().out == f"mqa uptrain: {taught} is finished already\n"
    assert {path: path.stat().st_mtime_ns for path in taught.iterdir()} == before
    assert exit_code(*arguments(world, taught, *more, seed=4)) == 2
    assert re.search(r"got one with another seed \(0, not 4\)\n", capsys.readouterr().err)
    assert exit_code(*arguments(world, taught, *more[2:])) == 2
    assert "another teacher, temperature" in capsys.readouterr().err


def test_plot_is_drawn_from_the_report_alone(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(taught / "uptrain.json", tmp_path / "any.json")
    assert exit_code("uptrain", "--redraw", str(tmp_path / "any.json")) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'uptrain.png'}\n"
    assert (tmp_path / "uptrain.png").read_bytes() == (taught / "uptrain.png").read_bytes()
    (tmp_path / "any.json").write_text("{}")
    assert exit_code("uptrain", "--redraw", str(tmp_path / "any.json")) == 2
    assert "any.json to be a report of mqa uptrain" in capsys.readouterr().err


STEPS = 45
KILLS = 4
SLOW_IMPORTS = (
    "mqa.__main__",
    "mqa.training.distillation",
    "mqa.training.texts",
    "mqa.training.uptrain_plot",
    "mqa.training.uptrain_report",
    "safetensors.torch",
    "tqdm",
    "transformers.models.auto.tokenization_auto",
)


def start(command: list[str]) -> Any:
    """The command in a process that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", *SLOW_IMPORTS])
    process = context.Process(target=exit_code, args=command)
    process.start()
    return process


def wait_for_another(checkpoint: Path, last: int | None, process: Any) -> None:
    """Until the checkpoint is not the one that was written at `last`."""
    while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == last:
        assert process.is_alive(), "it was to be killed, but has ended"
        time.sleep(0.005)


def stop_while_writing(partial: Path, process: Any) -> None:
    """Stops the process at a moment at which a part of the next checkpoint is written."""
    while True:
        assert process.is_alive(), "it was to be killed, but has ended"
        if partial.exists():
            os.kill(process.pid, signal.SIGSTOP)
            if partial.exists():
                return
            os.kill(process.pid, signal.SIGCONT)


def test_killed_at_any_moment_it_goes_on_to_the_same_bits(world: Path) -> None:
    changes = {"tokens": STEPS * 48, "checkpoint_every": 3, "evaluate_every": 7}
    unbroken, broken = world / "unbroken", world / "broken"
    more = ("--distill", world / "original", "--temperature", 1.5, "--distill-weight", 0.8)
    assert exit_code(*arguments(world, unbroken, *more, **changes)) == 0

    command = arguments(world, broken, *more, **changes)
    checkpoint, partial = broken / "checkpoint.pt", broken / ".unfinished/checkpoint.pt"
    moments = random.Random(0)
    for kill in range(KILLS):
        last = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
        process = start(command)
        wait_for_another(checkpoint, last, process)
        if kill % 2 == 0:
            stop_while_writing(partial, process)
        else:
            time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert partial.exists() or kill % 2
    assert exit_code(*command) == 0

    weights, expected = (load_file(f / "model.safetensors") for f in (broken, unbroken))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())
    for key in ("training", "held_out", "tokens", "identity"):
        assert report(broken)[key] == report(unbroken)[key], key
    assert not partial.parent.exists()


def test_a_full_disk_leaves_the_earlier_checkpoint(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights alone, at the start, still fit; with the optimizer's moments they do not."""
    command = arguments(world, tmp_path / "output", checkpoint_every=2)
    checkpoint = tmp_path / "output/checkpoint.pt"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = 2 * (world / "mqa/model.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        assert exit_code(*command) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line == f"mqa uptrain: {checkpoint}: File too large"
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint.pt"]
    assert exit_code(*command) == 0
    assert exit_code(*arguments(world, tmp_path / "unbroken")) == 0
    assert report(tmp_path / "output")["training"] == report(tmp_path / "unbroken")["training"]


IDENTITY = {"seed": 1, "text": "ab", "temperature": 2.0}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, IDENTITY, {"step": 3, "weights": torch.arange(1000.0)})
    return path


def test_checkpoint_holds_its_state(checkpoint: Path) -> None:
    state = load_checkpoint(checkpoint, IDENTITY)
    assert state["step"] == 3
    assert torch.equal(state["weights"], torch.arange(1000.0))


@pytest.mark.parametrize("size", [0, 100, 3000, -1])
def test_a_truncated_checkpoint_is_refused(checkpoint: Path, size: int) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is no intact checkpoint \("):
        load_checkpoint(checkpoint, IDENTITY)


def test_a_wrong_bit_is_refused(checkpoint: Path) -> None:
    content = bytearray(checkpoint.read_bytes())
    place = content.index(torch.arange(1000.0).numpy().tobytes())
    content[place + 1234] ^= 1
    checkpoint.write_bytes(content)
    with pytest.raises(ValueError, match=r"is no intact checkpoint \(wrong checksum of "):
        load_checkpoint(checkpoint, IDENTITY)


@pytest.mark.parametrize("content", [{"weights": torch.zeros(3)}, {"identity": Path("x")}, [1]])
def test_another_archive_is_refused(checkpoint: Path, content: Any) -> None:
    torch.save(content, checkpoint)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is no intact checkpoint \(.*\)$") as e:
        load_checkpoint(checkpoint, IDENTITY)
    assert "\n" not in str(e.value)


def test_a_checkpoint_of_another_training_says_what_differs(checkpoint: Path) -> None:
    wanted = {"seed": 1, "text": "cd", "temperature": None, "teacher": "x"}
    with pytest.raises(ValueError, match=r"one with another text, temperature .*, teacher$") as e:
        load_checkpoint(checkpoint, wanted)
    assert "temperature (2.0, not None)" in str(e.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tokens": 47}, "at least 48 --tokens, a step .*, got 47"),
        ({"context": 257}, r"at most 256 \(max_position of the model\), got 257"),
        ({"text": "{world}/short.txt"}, r"short\.txt: expected a text of which 10% .* 24 tokens"),
        ({"text": "{world}/nowhere.txt"}, "nowhere.txt: No such file or directory"),
        ({"text": "{world}/latin.txt"}, "latin.txt: expected UTF-8 text, got 'utf-8' codec"),
        ({"evaluate": "{world}/short.txt"}, r"short\.txt: expected a text of more than 24 tokens"),
        ({"distill": "{world}/larger"}, "vocabulary of the model, 741 tokens, got 800"),
        ({"reference": "{world}/larger"}, "vocabulary of the model, 741 tokens, got 800"),
        ({"distill": "{world}/nowhere"}, "no file or folder .*nowhere"),
        ({"distill-weight": 0}, r"expected a number in \(0, 1\], got '0'"),
        ({"temperature": 0}, "expected a positive number, got '0'"),
        ({"warm-up": 1}, r"expected a number in \[0, 1\), got '1'"),
        ({"learning-rate": "1e9"}, "the loss of step .* a lower --learning-rate may help"),
        ({"dtype": "float16"}, "invalid choice: 'float16'"),
    ],
)
def test_bad_options_are_one_sentence(
    changes: dict[str, object],
    sentence: str,
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (world / "latin.txt").write_bytes("Grün".encode("latin-1"))
    (world / "short.txt").write_text("short")
    if not (world / "larger").exists():
        save_model(world / "larger", vocab_size=800)
    filled = {name: str(value).format(world=world) for name, value in changes.items()}
    assert exit_code(*arguments(world, tmp_path / "output", **filled)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert re.search(f"^mqa uptrain: .*{sentence}", lines[-1]), lines
    assert "learning-rate" in changes or len(lines) == 1


def test_bad_folders_are_one_sentence(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*words: object) -> str:
        assert exit_code("uptrain", *map(str, words)) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        return err

    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes").write_text("mine")
    save_model(tmp_path / "bare")
    rest = ("--text", world / "text.txt", "--tokens", 48, "--batch", 2, "--context", 24)
    assert "file: File exists" in refusal(world / "mqa", tmp_path / "file", *rest)
    assert "full with notes" in refusal(world / "mqa", tmp_path / "full", *rest)
    assert "mqa with chat_template" in refusal(world / "mqa", world / "mqa", *rest)
    assert "no file" in refusal(tmp_path / "bare", tmp_path / "a", *rest)
    assert "got no tokens" in refusal(world / "mqa", tmp_path / "b", *rest[:2])
    assert "got no model" in refusal(*rest)
    same = ("--evaluate", world / "text.txt", tmp_path / "text.txt")
    assert "of different names to --evaluate" in refusal(
        world / "mqa", tmp_path / "c", *rest, *same
    )
