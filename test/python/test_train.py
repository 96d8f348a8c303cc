"""examples/train: equal sizes, equal losses with both attentions, files and refusals."""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import train
from corpus import king_james_bible
from decoders import tiny_config
from mqa.training.from_scratch import Losses

TEXT = b"".join(b"%d bottles of beer on the wall.\n" % number for number in range(99, 0, -1))
OPTIONS: dict[str, object] = {
    "steps": 30,
    "log-every": 5,
    "batch": 4,
    "context": 32,
    "learning-rate": 0.01,
    "layers": 2,
    "heads": 4,
    "gqa-kv-heads": 2,
    "head-dim": 16,
    "width": 64,
    "mlp": 128,
}


def run(folder: Path, *flags: str, **changes: object) -> int:
    """The command with tiny sizes on a tiny text."""
    text = folder / "text"
    text.write_bytes(TEXT)
    options = OPTIONS | {"text": text, "output": folder / "output"}
    options |= {name.replace("_", "-"): value for name, value in changes.items()}
    return train.main([*flags, *(f"--{name}={value}" for name, value in options.items())])


def results(folder: Path) -> dict[str, Any]:
    """What a run has written."""
    return json.loads((folder / "output/train.json").read_text())["variants"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with both attentions."""
    folder = tmp_path_factory.mktemp("compared")
    assert run(folder, "--compare") == 0
    return folder


def test_losses_equal_those_of_pytorchs_attention_at_every_logged_step(compared: Path) -> None:
    for name, variant in results(compared).items():
        ours, torchs = variant["losses"], variant["torch_losses"]
        assert ours["steps"] == torchs["steps"] == [1, 5, 10, 15, 20, 25, 30], name
        for kind in ("training", "validation"):
            assert ours[kind] == pytest.approx(torchs[kind], abs=1e-3), (name, kind)


def test_losses_fall(compared: Path) -> None:
    for name, variant in results(compared).items():
        assert variant["losses"]["training"][0] == pytest.approx(math.log(256), abs=0.1), name
        for kind in ("training", "validation"):
            assert variant["losses"][kind][-1] < 2.6, (name, kind)


def test_plot_and_table_are_written(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (compared / "output/train.png").read_bytes().startswith(b"\x89PNG")
    assert run(compared, output=compared / "table", steps=1) == 0
    lines = capsys.readouterr().out.splitlines()
    header, _, *rows = [line.split() for line in lines[:5]]
    assert header == ["KV", "heads", "MLP", "parameters", "seconds", "training", "validation"]
    assert [row[:4] for row in rows] == [
        ["MHA", "4", "128", "115,008"],
        ["GQA-2", "2", "149", "114,880"],
        ["MQA", "1", "160", "115,008"],
    ]


def losses_of(folder: Path) -> list[object]:
    return [
        variant["losses"][kind]
        for variant in results(folder).values()
        for kind in ("training", "validation")
    ]


def test_a_seed_decides_every_bit(compared: Path, tmp_path: Path) -> None:
    expected = losses_of(compared)
    torch.manual_seed(17)  # of no influence
    assert run(tmp_path) == 0
    assert losses_of(tmp_path) == expected
    assert run(tmp_path, seed=1) == 0
    assert not any(a == b for a, b in zip(losses_of(tmp_path), expected, strict=True))


def test_another_attention_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attend = torch.nn.functional.scaled_dot_product_attention

    def blunt(*arguments: Tensor, **options: Any) -> Tensor:
        return attend(*arguments, **options | {"scale": 0.01})

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", blunt)
    assert run(tmp_path, "--compare") == 1
    assert "train: MHA: expected losses that differ by at most 0.001" in capsys.readouterr().err


def test_a_loss_that_is_no_number_differs_from_any() -> None:
    config = tiny_config()
    for kind in ("training", "validation"):
        good = Losses(steps=[1, 2], training=[1.0, 1.0], validation=[1.0, 1.0])
        bad = copy.deepcopy(good)
        getattr(bad, kind)[1] = float("nan")
        with pytest.raises(train.CheckError, match="a difference of nan"):
            train.check_equal({"MHA": train.Variant(config, 1, good, bad)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": len(TEXT) // 10}, r"expected a text of which 10% .* more than \d+ tokens"),
        ({"text": "/nowhere/text"}, "/nowhere/text: No such file or directory"),
        ({"gqa_kv_heads": 3}, "expected num_kv_heads to divide num_heads = 4, got 3"),
        ({"head_dim": 15}, "expected an even head_dim, got 15"),
        ({"width": 0}, "expected hidden_size > 0, got 0"),
        ({"steps": 0}, "expected steps > 0, got 0"),
        ({"learning_rate": "nan"}, "expected learning_rate > 0, got nan"),
        ({"batch": "four"}, "argument --batch: invalid int value: 'four'"),
        ({"output": "/dev/null/output"}, "/dev/null/output: Not a directory"),
        ({"output": "/proc"}, "/proc/train.json: "),
    ],
)
def test_bad_input_is_refused_in_a_sentence(
    changes: dict[str, object],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code: object
    try:
        code = run(tmp_path, **changes)
    except SystemExit as exit_:  # so argparse leaves
        code = exit_.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    sentence = captured.err.removesuffix("\n")
    assert sentence.isprintable()  # one line, and no progress of a training
    assert re.match(f"train: .*{message}", sentence), sentence


def test_the_bible_is_in_order() -> None:
    text = king_james_bible().decode()
    assert text.startswith("1:1 In the beginning God created the heavens and the earth.\n1:2 And")
    assert text.endswith("The grace of our Lord Jesus Christ be with you all. Amen.")
    assert len(text) > 4_000_000
