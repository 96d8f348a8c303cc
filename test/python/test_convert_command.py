"""`mqa convert`: folders, comparisons, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import bpe
import mqa
from commands import exit_code
from mqa.tokenizer import load_tokenizer
from mqa.training.pieces import spread_pieces
from test_generate_command import save_model, save_tokenizer

CONTEXT = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with 2 KV heads for 6 query heads, and two texts."""
    folder = save_model(tmp_path_factory.mktemp("models") / "tiny", max_position=CONTEXT)
    save_tokenizer(folder)
    (folder / "short.txt").write_text("The keeper climbed")
    (folder / "latin1.txt").write_bytes("Wärter".encode("latin-1"))
    for name, sentences in (("calibration.txt", bpe.CORPUS), ("other.txt", bpe.CORPUS[::-1])):
        (folder / name).write_text("\n".join(sentences[:2] * 12), encoding="utf-8")
    return folder


def tokens_of(folder: Path, name: str) -> Tensor:
    text = (folder / name).read_text(encoding="utf-8")
    return torch.tensor(load_tokenizer(folder).encode(text))


def parts(folder: Path) -> tuple[Tensor, Tensor]:
    """Of the calibration text: to calibrate on, and to measure on."""
    tokens = tokens_of(folder, "calibration.txt")
    return tokens[: -(len(tokens) // 10)], tokens[-(len(tokens) // 10) :]


def pieces(folder: Path, tokens: Tensor, count: int) -> Tensor:
    first = load_tokenizer(folder).encode("")[0]
    starts = torch.linspace(0, len(tokens) - CONTEXT, count).long().tolist()
    return torch.stack(
        [torch.cat([torch.tensor([first]), tokens[i + 1 : i + CONTEXT]]) for i in starts]
    )


def loss(model: mqa.Decoder, pieces: Tensor) -> float:
    return sum(mqa.nll(model, piece) for piece in pieces) / len(pieces)


def test_a_folder_is_written_and_generates(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new"
    arguments = ["convert", str(folder), str(output), "--kv-heads", "1"]
    calibration = ["--calibration", str(folder / "calibration.txt"), "--calibration-tokens", "200"]
    assert exit_code(*arguments, *calibration) == 0
    assert capsys.readouterr().out == f"{output}: 2 -> 1 KV heads, svd by 192 tokens\n"
    text = pieces(folder, parts(folder)[0], 3)
    expected = mqa.convert(mqa.load(folder), 1, "svd", calibration=text)
    loaded = mqa.load(output)
    assert loaded.config.num_kv_heads == 1
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, expected.state_dict()[name]), name
    prompt = ["--prompt", "The keeper", "--max-new-tokens", "3", "--chat"]
    assert exit_code("generate", str(output), *prompt) == 0


@pytest.mark.parametrize("method", ["mean", "first", "align"])
def test_other_ways_are_taken_at_their_word(folder: Path, tmp_path: Path, method: str) -> None:
    options = ["--kv-heads", "3", "--from", "6", "--groups", "similar", "--dtype", "bfloat16"]
    assert exit_code("convert", str(folder), str(tmp_path), "--method", method, *options) == 0
    wider = mqa.convert(mqa.load(folder, torch.bfloat16), 6)
    expected = mqa.convert(wider, 3, method, groups="similar").state_dict()
    for name, weight in mqa.load(tmp_path, torch.bfloat16).state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_without_a_tokenizer_the_model_is_written_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = save_model(tmp_path / "bare")
    assert exit_code("convert", str(bare), str(tmp_path / "new"), "--kv-heads", "1") == 0
    out, err = capsys.readouterr()
    assert out.endswith("2 -> 1 KV heads, align by weights\n")
    assert "mqa convert: writes no tokenizer, for load_tokenizer: no file" in err
    files = {file.name for file in (tmp_path / "new").iterdir()}
    assert files == {"config.json", "model.safetensors"}


def compare(folder: Path, output: Path, *options: str) -> dict[str, Any]:
    texts = ["--calibration", str(folder / "calibration.txt")]
    arguments = ["convert", str(folder), str(output), "--compare", *texts, *options]
    assert exit_code(*arguments) == 0
    report: dict[str, Any] = json.loads((output / "convert.json").read_text())
    return report


def test_a_comparison_measures_every_method(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ["--evaluate", str(folder / "other.txt"), "--evaluate-tokens", "130"]
    report = compare(folder, tmp_path, "--kv-heads", "1", *other)
    out = capsys.readouterr().out
    training, validation = parts(folder)
    texts = {
        "calibration.txt": pieces(folder, validation, 2),
        "other.txt": pieces(folder, tokens_of(folder, "other.txt"), 2),
    }
    calibration = pieces(folder, training, len(training) // CONTEXT)
    assert report["texts"] == {"calibration.txt": 2 * CONTEXT, "other.txt": 2 * CONTEXT}
    assert report["calibration_tokens"] == calibration.numel()
    model = mqa.load(folder)
    assert report["original"] == pytest.approx({n: loss(model, t) for n, t in texts.items()})
    rotation = report["rotation"]
    assert 0 < rotation["largest_difference"] < 1e-5 * rotation["largest_logit"]
    found = [(c["method"], c["by"]) for c in report["conversions"]]
    assert sorted(found) == [
        ("align", "text"),
        ("align", "weights"),
        ("first", "weights"),
        ("mean", "weights"),
        ("svd", "text"),
        ("svd", "weights"),
    ]
    for conversion in report["conversions"]:
        text = calibration if conversion["by"] == "text" else None
        converted = mqa.convert(model, 1, conversion["method"], calibration=text)
        losses = {name: loss(converted, pieces) for name, pieces in texts.items()}
        assert conversion["losses"] == pytest.approx(losses)
        assert f"{losses['other.txt']:.3f}" in out
    assert "change logits by" in out
    assert "6.83" in out


def test_repeated_heads_merge_without_a_loss(folder: Path, tmp_path: Path) -> None:
    report = compare(folder, tmp_path, "--kv-heads", "2", "--from", "6")
    assert report["kv_heads"] == {"before": 6, "after": 2}
    assert len(report["conversions"]) == 10
    for conversion in report["conversions"]:
        assert conversion["losses"] == pytest.approx(report["original"], abs=1e-4)


def test_plots_are_drawn_again_from_the_report(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(folder, tmp_path, "--kv-heads", "1")
    image = tmp_path / "convert.png"
    drawn = image.read_bytes()
    image.unlink()
    capsys.readouterr()
    assert exit_code("convert", "--redraw", str(tmp_path / "convert.json")) == 0
    assert capsys.readouterr().out == f"{image}\n"
    assert image.read_bytes() == drawn


COMPARE = ["--compare", "--kv-heads", "1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}", "{new}"], "expected a MODEL and --kv-heads N"),
        ([], "expected a MODEL and --kv-heads N"),
        (["{model}", "--kv-heads", "1"], "expected a folder OUTPUT to write the model to"),
        (["{model}", "{model}", "--kv-heads", "1"], "expected OUTPUT to be a new or empty folder"),
        (["{model}", "{new}", "--kv-heads", "4"], "--kv-heads to divide 2, the KV heads before"),
        (["{model}", "{new}", "--kv-heads", "1", "--from", "3"], "a multiple of 2, got 3"),
        (["{model}", "{new}", "--kv-heads", "1", "--from", "4"], "divide num_heads = 6, got 4"),
        (["{new}.gguf", "{new}", "--kv-heads", "1"], "load: no file or folder {new}.gguf"),
        (
            ["{model}/config.json", "{new}", "--kv-heads", "1"],
            "load: expected a Hugging Face folder or a .gguf file, got {model}/config.json",
        ),
        (
            ["{model}", "{new}", "--kv-heads", "1", "--calibration", "{model}/short.txt"],
            "{model}/short.txt: expected a text of which 10% (for validation) are more than 64",
        ),
        (
            ["{model}", "{new}", "--kv-heads", "1", "--calibration", "{model}/latin1.txt"],
            "{model}/latin1.txt: expected UTF-8 text",
        ),
        (
            ["{model}", "{new}", "--kv-heads", "1", "--calibration", "{new}.txt"],
            "{new}.txt: No such file or directory",
        ),
        (["{model}", "{new}", *COMPARE], "expected a --calibration text with --compare"),
        (
            ["{model}", "{new}", *COMPARE, "--calibration", "x", "--method", "svd"],
            "expected no --method with --compare, which tries all",
        ),
        (
            ["{model}", "{new}", *COMPARE, "--calibration", "x", "--evaluate", "y/x"],
            "expected texts of different names, got x, x",
        ),
        (
            ["{model}", "{new}", "--compare", "--kv-heads", "2", "--calibration", "x"],
            "expected fewer --kv-heads than 2 to compare",
        ),
        (["{model}", "{new}", "--kv-heads", "1", "--evaluate", "x"], "--evaluate with --compare"),
        (["--redraw", "{model}/config.json"], "config.json to be a report of mqa convert"),
        (["--redraw", "{model}/short.txt"], "short.txt is no JSON file"),
    ],
)
def test_bad_input_is_one_sentence(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    places = {"model": folder, "new": tmp_path / "new"}
    assert exit_code("convert", *(a.format(**places) for a in arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mqa convert: ")
    assert err.count("\n") == 1
    assert message.format(**places) in err


def test_pieces_are_spread_over_a_text() -> None:
    tokens = torch.arange(100)
    assert_close(spread_pieces(tokens, 9, 3), torch.tensor([[0, 1, 2], [48, 49, 50], [97, 98, 99]]))
    assert spread_pieces(tokens, 1, 40, first_token=7).tolist() == [[7, *range(1, 40)]]
    assert spread_pieces(tokens, 10**6, 10).shape == (10, 10)
