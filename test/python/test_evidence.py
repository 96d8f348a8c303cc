"""scripts/evidence: stages whose commands exist; figures that come from committed reports."""

import json
import re
from pathlib import Path

import pytest

import evidence
import texts
from mqa.__main__ import make_parser

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs/evidence.md"


@pytest.mark.parametrize("flags", [[], ["--quick"]])
def test_every_stage_is_a_command_line_that_mqa_takes(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[list[str]] = []
    monkeypatch.setattr(evidence, "program", lambda arguments: lines.append(list(arguments)))
    monkeypatch.setattr(evidence, "BUILD", tmp_path)
    monkeypatch.setattr(evidence.smollm2, "install", lambda folder: Path("model.gguf"))
    monkeypatch.setattr(
        texts, "install", lambda folder: {n: folder / n for n in ("bible", "shakespeare")}
    )
    assert evidence.main([*flags, "--results", str(tmp_path / "results")]) == 0
    commands = [line[2:] for line in lines if line[:2] == ["-m", "mqa"]]
    for command in commands:
        make_parser().parse_args(command)  # exits where it does not understand
    names = ["cost", "quality", "convert", "convert", "convert", "convert", "uptrain"]
    assert [command[0] for command in commands] == names
    assert {path.name for path in (tmp_path / "results").iterdir()} == {*evidence.STAGES}


def test_a_stage_that_fails_is_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="expected exit code 0 from the command above, got 3"):
        evidence.program(["-c", "raise SystemExit(3)"])
    assert "$ python -c" in capsys.readouterr().out


def test_every_figure_has_its_report() -> None:
    figures = re.findall(r"!\[.*?\]\((evidence/.*?\.png)\)", DOCUMENT.read_text())
    assert {figure.split("/")[1] for figure in figures} == {*evidence.STAGES}
    for figure in figures:
        folder = (DOCUMENT.parent / figure).parent
        assert (DOCUMENT.parent / figure).is_file()
        report = json.loads((folder / f"{folder.name.split('-')[0]}.json").read_text())
        assert report["machine"]["date"].startswith("20")
        assert report["command"][0] == "mqa"
        assert not any(Path(argument).is_absolute() for argument in report["command"])


def test_figures_are_drawn_from_the_committed_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (ROOT / "docs/evidence").glob("*/*.json"):
        copy = tmp_path / file.parent.name / file.name
        copy.parent.mkdir()
        copy.write_bytes(file.read_bytes())
    monkeypatch.setattr(evidence, "DOCUMENT", tmp_path)
    assert evidence.main(["--redraw"]) == 0
    drawn = {path.relative_to(tmp_path) for path in tmp_path.glob("*/*.png")}
    kept = {p.relative_to(ROOT / "docs/evidence") for p in ROOT.glob("docs/evidence/*/*.png")}
    assert drawn == kept
