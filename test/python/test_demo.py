"""The demo: models that are kept only while valid, checks that stop it, and its report."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import exported
import mqa
from checks import CheckError, check_runs
from decoders import tiny_decoder
from measure import CppRun, Run, long_decode_rate, round_robin, run_python
from report import Report, VariantReport, format_report, write_report
from variants import Variant, make_variants

PROMPT = [5, 7, 9]
TOKENIZER = json.dumps({"model": {}})

Runs = dict[tuple[str, str], list[Run]]


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> list[Variant]:
    trained = tiny_decoder(num_heads=9, num_kv_heads=3, hidden_size=72)
    return make_variants(trained, TOKENIZER, tmp_path_factory.mktemp("models"))


@pytest.fixture
def runs(variants: list[Variant]) -> Runs:
    """Runs that fit together, as if C++ had given what Python gives."""
    result: Runs = {}
    for variant in variants:
        run = run_python(variant.model, PROMPT, num_tokens=4)
        cpp = CppRun(run.tokens, 1.0, 1.0, variant.cache_bytes(len(PROMPT) + 3), PROMPT)
        result[variant.name, "C++"] = [cpp, cpp]
        result[variant.name, "Python"] = [run, run]
    return result


def test_variants_differ_in_kv_heads_only(variants: list[Variant]) -> None:
    assert [(v.name, v.model.config.num_kv_heads) for v in variants] == [
        ("MHA", 9),
        ("GQA", 3),
        ("MQA", 1),
    ]
    for variant in variants:
        cache = torch.jit.load(variant.file).new_cache(1, 10)
        assert sum(tensor.nbytes for tensor in cache) == variant.cache_bytes(10)


def test_exported_models_are_kept_until_a_dependency_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"MQA": tiny_decoder(num_kv_heads=1)}
    first = exported.export(models, TOKENIZER, tmp_path)["MQA"]
    written = first.stat().st_mtime_ns
    assert exported.export(models, TOKENIZER, tmp_path)["MQA"] == first
    assert first.stat().st_mtime_ns == written

    monkeypatch.setattr(exported, "version", lambda name: f"another {name}")
    second = exported.export(models, TOKENIZER, tmp_path)["MQA"]
    assert second != first
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [second]


def test_runs_that_agree_pass(variants: list[Variant], runs: Runs) -> None:
    reference = runs["GQA", "Python"][0].tokens
    assert "4 tokens that transformers gives" in check_runs(variants, runs, PROMPT, reference)[0]


@pytest.mark.parametrize("variant", ["MHA", "GQA", "MQA"])
@pytest.mark.parametrize("engine", ["C++", "Python"])
def test_another_token_in_any_run_is_found(
    variants: list[Variant], runs: Runs, variant: str, engine: str
) -> None:
    reference = runs["GQA", "Python"][0].tokens
    run = runs[variant, engine][1]
    runs[variant, engine][1] = replace(run, tokens=[*run.tokens[:-1], run.tokens[-1] + 1])
    with pytest.raises(CheckError, match=f"tokens of {variant} by {engine.replace('+', '.')}"):
        check_runs(variants, runs, PROMPT, reference)


def test_another_reference_is_found(variants: list[Variant], runs: Runs) -> None:
    with pytest.raises(CheckError, match=r"tokens of MHA .* expected .*0, 0, 0, 0"):
        check_runs(variants, runs, PROMPT, [0, 0, 0, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"prompt": [5, 7]}, "tokens of the prompt"), ({"cache_bytes": 1}, "bytes of MHA's cache")],
)
def test_another_prompt_or_cache_in_cpp_is_found(
    variants: list[Variant], runs: Runs, changes: dict[str, object], message: str
) -> None:
    reference = runs["GQA", "Python"][0].tokens
    runs["MHA", "C++"][0] = replace(runs["MHA", "C++"][0], **changes)
    with pytest.raises(CheckError, match=message):
        check_runs(variants, runs, PROMPT, reference)


def test_python_runs_give_what_generate_gives(variants: list[Variant]) -> None:
    for variant in variants:
        run = run_python(variant.model, PROMPT, num_tokens=8)
        assert run.tokens == mqa.generate(variant.model, [PROMPT], 8, stop_tokens=())[0]


@pytest.mark.parametrize("impl", ["mqa", "torch"])
def test_long_decode_fills_the_context(variants: list[Variant], impl: str) -> None:
    model = variants[1].model.with_attention_impl(impl)
    assert long_decode_rate(model, context=model.config.max_position) > 0


def test_round_robin_interleaves() -> None:
    calls: list[str] = []
    tasks = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    assert round_robin(tasks, rounds=2) == {"a": [1, 3], "b": [2, 4]}
    assert calls == ["a", "b", "a", "b"]


def test_report_shows_medians_and_text(tmp_path: Path) -> None:
    others = {"Python, mqa": [7.0], "Python, torch": [8.0]}
    variants = [
        VariantReport(
            name=name,
            num_kv_heads=heads,
            token_bytes=1000 * heads,
            long_cache_bytes=10**6 * heads,
            prefill={"C++, mqa": [1.0, 300.25, 400.0], **others},
            decode={"C++, mqa": [20.0, 30.0, 10.0], **others},
            long_decode=others,
            nll=2.5,
            text=f"told by {name} & <others>",
        )
        for name, heads in (("MHA", 9), ("MQA", 1))
    ]
    report = Report(
        machine={"torch": "2"},
        prompt="Once",
        num_prompt_tokens=1,
        num_new_tokens=4,
        num_passage_tokens=1427,
        long_context=8192,
        checks=["Equal."],
        variants=variants,
    )
    table = [re.split("  +", line) for line in format_report(report).splitlines()]
    assert ["cache at 8,192 tokens", "9 MB", "1 MB"] in table
    assert ["prefill, C++, mqa (tokens/s)", "300.2", "300.2"] in table
    assert ["decode, C++, mqa (tokens/s)", "20.0", "20.0"] in table
    assert ["decode at 8,192 tokens, Python, torch (tokens/s)", "8.0", "8.0"] in table
    assert ["negative log-likelihood per token", "2.500", "2.500"] in table

    json_file, png_file, html_file = write_report(report, tmp_path)
    content = json.loads(json_file.read_text())
    assert content["variants"][0]["prefill"]["C++, mqa"] == [1, 300.25, 400]
    assert png_file.read_bytes().startswith(b"\x89PNG")
    page = html_file.read_text()
    assert "told by MQA &amp; &lt;others&gt;" in page
    assert "<td>300.2</td>" in page
    assert 'src="data:image/png;base64,' in page
