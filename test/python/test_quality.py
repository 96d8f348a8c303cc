"""mqa quality: decoders of equal size, reports that go on, tables, plots, refusals."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import exit_code
from decoders import tiny_config
from mqa import Decoder
from mqa.quality.report import summaries, table
from mqa.quality.variants import num_parameters, variants

TEXT = b"".join(b"%d bottles of beer on the wall.\n" % number for number in range(99, 0, -1))
OPTIONS: dict[str, object] = {
    "layers": 1,
    "heads": 4,
    "head-dim": 8,
    "width": 32,
    "mlp": 64,
    "steps": 25,
    "batch": 4,
    "context": 32,
    "learning-rate": 0.02,
    "decode-batch": 2,
    "decode-context": 64,
}


def quality(folder: Path, **changes: object) -> object:
    """The command with tiny sizes on a tiny text."""
    text = folder / "text"
    text.write_bytes(TEXT)
    options = OPTIONS | {"text": text, "output": folder / "output", "seeds": 2}
    options |= {name.replace("_", "-"): value for name, value in changes.items()}
    lists = ("--kv-heads", "2", "1", "--fewer-heads", "1")
    return exit_code("quality", *(f"--{name}={value}" for name, value in options.items()), *lists)


def report(folder: Path) -> Any:
    return json.loads((folder / "output/quality.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of all variants with two seeds."""
    folder = tmp_path_factory.mktemp("quality")
    assert quality(folder) == 0
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_heads": 32, "hidden_size": 512, "head_dim": 16, "intermediate_size": 1024},
        {"num_heads": 8, "head_dim": 64, "tie_embeddings": True},
        {"num_heads": 8, "head_dim": 16, "gated": False},
    ],
)
def test_variants_have_as_many_parameters(changes: dict[str, Any]) -> None:
    mha = tiny_config(**changes | {"num_kv_heads": changes.get("num_heads", 6)})
    configs = variants(mha, [2, 1], [1])
    heads = mha.num_heads
    assert {name: (c.num_heads, c.num_kv_heads) for name, c in configs.items()} == {
        "MHA": (heads, heads),
        "GQA-2": (heads, 2),
        "MQA": (heads, 1),
        "MHA, 1 head": (1, 1),
    }
    assert configs["MHA"] == mha
    sizes = [num_parameters(config) for config in configs.values()]
    assert sizes[0] == sum(weight.numel() for weight in Decoder(mha).parameters())
    assert max(sizes) - min(sizes) < 0.01 * sizes[0]


def test_every_variant_learns_with_every_seed(finished: Path) -> None:
    runs = report(finished)["runs"]
    names = ("MHA", "GQA-2", "MQA", "MHA, 1 head")
    assert [(r["variant"], r["seed"]) for r in runs] == [(n, s) for s in (0, 1) for n in names]
    for run in runs:
        losses = run["losses"]
        assert losses["steps"] == list(range(1, 26))
        assert losses["training"][0] == pytest.approx(math.log(256), abs=0.1)
        assert losses["validation"][-1] < 3.5
    assert len({run["losses"]["validation"][-1] for run in runs}) == len(runs)


def test_reports_cache_size_and_speed(finished: Path) -> None:
    written = report(finished)
    sizes = {name: variant["cache_bytes"] for name, variant in written["variants"].items()}
    of_a_head = 2 * 8 * 2  # keys and values of 8 elements in bfloat16
    assert sizes == {
        "MHA": 4 * of_a_head,
        "GQA-2": 2 * of_a_head,
        "MQA": of_a_head,
        "MHA, 1 head": of_a_head,
    }
    assert set(written["tokens_per_second"]) == set(sizes)
    assert all(10 < rate < 1e6 for rate in written["tokens_per_second"].values())


def test_goes_on_where_it_was(finished: Path, tmp_path: Path) -> None:
    expected = [run["losses"] for run in report(finished)["runs"]]
    assert quality(tmp_path, seeds=1) == 0
    first = report(tmp_path)["runs"]
    torch.manual_seed(17)  # of no influence
    assert quality(tmp_path) == 0
    runs = report(tmp_path)["runs"]
    assert runs[: len(first)] == first  # seconds included: not trained again
    for run, losses in zip(runs, expected, strict=True):
        assert run["losses"] | {"seconds": 0} == losses | {"seconds": 0}


def test_refuses_to_mix_settings(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = report(finished)
    assert quality(finished, steps=26) == 2
    sentence = capsys.readouterr().err
    assert re.match(r"mqa quality: expected the steps of the runs in .*, 25, got 26: ", sentence)
    assert report(finished) == before


def test_table_has_mean_and_spread() -> None:
    config = {"num_heads": 4, "num_kv_heads": 1, "intermediate_size": 80}
    runs = [{"variant": "MQA", "losses": {"validation": [9.0, loss]}} for loss in (1.0, 2.0, 3.0)]
    variant = {"config": config, "num_parameters": 12345, "cache_bytes": 64}
    fixed = {
        "variants": {"MHA": variant, "MQA": variant},
        "runs": runs,
        "tokens_per_second": {"MQA": 1234.4},
    }
    (summary,) = summaries(fixed)
    assert (summary.loss, summary.spread) == (2.0, 1.0)
    assert table(fixed)[1] == [["MQA", "4", "1", "80", "12,345", "64", "2.0000", "1.0000", "1,234"]]


def test_draws_again_from_the_report(finished: Path, tmp_path: Path) -> None:
    file = finished / "output/quality.json"
    assert exit_code("quality", f"--redraw={file}", f"--output={tmp_path}/new") == 0
    for name in ("quality.png", "quality_losses.png"):
        image = (tmp_path / "new" / name).read_bytes()
        assert image.startswith(b"\x89PNG")
        assert image == (finished / "output" / name).read_bytes()


def test_draws_only_its_own_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "other.json"
    file.write_text('{"papers": []}')
    assert exit_code("quality", f"--redraw={file}") == 2
    assert capsys.readouterr().err == (
        f"mqa quality: expected {file} to be a report of mqa quality\n"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": len(TEXT) // 10}, r"expected a text of which 10% .* more than \d+ tokens"),
        ({"text": "/nowhere/text"}, "/nowhere/text: No such file or directory"),
        ({"heads": 3}, "expected num_kv_heads to divide num_heads = 3, got 2"),
        ({"head_dim": 15}, "expected an even head_dim, got 15"),
        ({"steps": 0}, "argument --steps: expected a positive whole number, got '0'"),
        ({"learning_rate": "nan"}, "expected learning_rate > 0, got nan"),
        ({"output": "/dev/null/output"}, "/dev/null/output: Not a directory"),
        ({"output": "/proc"}, "/proc/.unfinished: "),
    ],
)
def test_bad_input_is_refused_in_a_sentence(
    changes: dict[str, object],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert quality(tmp_path, **changes) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    sentence = captured.err.removesuffix("\n")
    assert sentence.isprintable()  # one line, and no progress of a training
    assert re.match(f"mqa quality: .*{message}", sentence), sentence
