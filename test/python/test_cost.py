"""Fits, grids, bytes and tables of `mqa cost`, and small runs of it."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from commands import exit_code
from mqa.commands import cost
from mqa.config import DecoderConfig
from mqa.cost import fit, growth, memory, report, shapes, steps
from mqa.cost.grid import Grid
from mqa.cost.papers import PAPERS

TINY = DecoderConfig(
    num_layers=2,
    hidden_size=64,
    num_heads=32,
    num_kv_heads=32,
    head_dim=16,
    intermediate_size=64,
    vocab_size=50,
    max_position=64,
    tie_embeddings=True,
)
KINDS = {kind: replace(TINY, num_kv_heads=count) for kind, count in shapes.KV_HEADS.items()}


def test_the_fit_recovers_coefficients_of_any_size() -> None:
    lengths = [16, 90, 512, 1000, 4096]
    known = [0.02, 7e-4, 1e-7]
    seconds = fit.evaluate(known, lengths)
    assert seconds[1] == pytest.approx(0.02 + 7e-4 * 90 + 1e-7 * 8100)
    assert fit.polynomial(lengths, seconds, 2) == pytest.approx(known, rel=1e-9)
    assert fit.total(known) == pytest.approx([0, 0.02, 3.5e-4, 1e-7 / 3])


def test_the_fit_weighs_relative_errors() -> None:
    # (c - 1)^2 + (c / 2 - 1)^2 is least at 1.2; absolute errors would give 1.5.
    assert fit.polynomial([1, 2], [1.0, 2.0], 0) == pytest.approx([1.2])


def test_exponents_are_slopes_of_logarithms() -> None:
    lengths = [64, 256, 1024]
    assert fit.exponent(lengths, [3.0 * n**2 for n in lengths]) == pytest.approx(2)
    assert fit.exponent(lengths, [0.1 * n for n in lengths]) == pytest.approx(1)


def test_sums_interpolate_between_the_lengths() -> None:
    lengths = [4, 7, 100]
    seconds = [2.0 * n for n in lengths]
    # 1, 2 and 3 count as 4: 6 more than the sum of 2 n.
    assert fit.sum_to(100, lengths, seconds) == pytest.approx(100 * 101 + 12)
    assert fit.sum_to(7, lengths, seconds) == pytest.approx(7 * 8 + 12)
    assert fit.sum_to(2, lengths, seconds) == pytest.approx(16)


def test_both_ways_of_generating_compute_the_same() -> None:
    config = replace(TINY, num_heads=4, num_kv_heads=4)
    model = shapes.random_decoder(config, torch.float32)
    cache = model.new_cache(batch=1, capacity=12)
    tokens = torch.randint(config.vocab_size, (1, 12))
    with torch.inference_mode():
        for length in range(1, 13):
            torch.testing.assert_close(
                growth.decode(model, tokens, length, cache),
                growth.recompute(model, tokens, length),
            )


def test_lengths_are_even_in_their_logarithm() -> None:
    plan = growth.Plan(TINY, longest=4096, points=5, budget=1, checked=1)
    assert plan.lengths() == [16, 64, 256, 1024, 4096]


def test_growth_of_known_seconds() -> None:
    lengths = [16, 64, 256, 1024, 4096]
    way = growth.summarise(
        lengths=lengths,
        seconds=[1e-3 * n for n in lengths],
        degree=2,
        exponent_from=1024,
        checked=64,
        generated=2.5,
    )
    assert way.totals[-1] == pytest.approx(4096 * 4097 / 2 * 1e-3 + 0.12)
    assert way.coefficients == pytest.approx([0, 1e-3, 0], abs=1e-9)
    assert way.exponent == pytest.approx(2, abs=0.01)
    assert (way.generated_seconds, way.interpolated_seconds) == (2.5, pytest.approx(2.2))


def test_decoders_of_all_kinds_share_their_weights() -> None:
    decoders = shapes.random_decoders(KINDS, torch.bfloat16)
    largest, fewest = decoders["MHA"].state_dict(), decoders["MQA"].state_dict()
    for name, weight in fewest.items():
        assert weight.data_ptr() == largest[name].data_ptr()
        assert torch.equal(weight, largest[name][: len(weight)])
    assert fewest["layers.1.self_attn.v_proj.weight"].shape == (16, 64)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_caches_are_like_new_ones(kind: str) -> None:
    config = KINDS[kind]
    decoder = shapes.random_decoder(config, torch.bfloat16)
    pool = steps.random_pool(steps.formula_bytes(config, context=24, batch=3), [config])
    cut, new = steps.cut_cache(pool, config, 24, 3), decoder.new_cache(batch=3, capacity=24)
    layout = [(x.shape, x.stride(), x.dtype) for x in new]
    assert [(x.shape, x.stride(), x.dtype) for x in cut] == layout
    assert sum(x.nbytes for x in cut) == steps.formula_bytes(config, context=24, batch=3)
    assert len({x.data_ptr() for x in cut}) == len(cut)
    assert all(0.5 < x.float().std() < 2 for x in cut)


def test_a_timed_step_writes_the_last_slot_and_no_other() -> None:
    config = KINDS["GQA-4"]
    pool = steps.random_pool(steps.formula_bytes(config, context=9, batch=2), [config])
    before = [x.clone() for x in steps.cut_cache(pool, config, 9, 2)]
    with torch.inference_mode():
        decoder = shapes.random_decoder(config, torch.bfloat16)
        seconds = steps.timed_step(decoder, pool, context=9, batch=2)(0)
    assert seconds > 0
    for old, new in zip(before, steps.cut_cache(pool, config, 9, 2), strict=True):
        assert torch.equal(old[..., :8, :], new[..., :8, :])
        assert not (old[..., 8, :] == new[..., 8, :]).all(-1).any()


def test_steps_leave_out_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "measure_bandwidth", lambda: 1e9)
    limit = steps.formula_bytes(TINY, context=16, batch=1)
    found = steps.measure(steps.Plan(KINDS, (16, 32), (1, 8), limit, budget=0.02))
    timed = {(p.kind, p.context, p.batch) for p in found.points if p.seconds}
    # 1/8 of MHA's heads, 8 times its sequences: the same bytes.
    assert timed == {
        *((kind, 16, 1) for kind in KINDS),
        *((kind, 32, 1) for kind in ("GQA-8", "GQA-4", "MQA")),
        *((kind, 16, 8) for kind in ("GQA-4", "MQA")),
        ("MQA", 32, 8),
    }
    assert len(found.points) == 16
    point = next(p for p in found.points if p.kind == "MQA" and (p.context, p.batch) == (32, 8))
    assert point.cache_bytes == 2 * 2 * 8 * 1 * 16 * 32 * 2
    weights = 50 * 64 + 64 + 2 * (2 * 64 * 512 + 2 * 64 * 16 + 3 * 64 * 64 + 2 * 64)
    assert point.weight_bytes == 2 * weights
    assert point.read_seconds == pytest.approx((point.weight_bytes + point.cache_bytes) / 1e9)


def test_memory_of_a_cache_is_what_the_formula_says() -> None:
    config = shapes.billion_config(num_kv_heads=4, context=12_207)  # not a multiple of a piece
    size = steps.formula_bytes(config, context=12_207, batch=1)
    assert size == 2 * 16 * 1 * 4 * 64 * 12_207 * 2  # 200 MB
    assert memory.in_process_of_its_own(config, context=12_207, batch=1) == pytest.approx(
        size, rel=0.02
    )


def samples(seconds: float) -> dict[str, float]:
    return {"median": seconds, "minimum": seconds, "maximum": seconds, "count": 3}


def point(
    kind: str, context: int, batch: int, cache: int, seconds: float | None
) -> dict[str, object]:
    return {
        "kind": kind,
        "num_kv_heads": shapes.KV_HEADS[kind],
        "context": context,
        "batch": batch,
        "weight_bytes": 10**9,
        "cache_bytes": cache,
        "read_seconds": (10**9 + cache) / 1e10,
        "seconds": samples(seconds) if seconds else None,
    }


SHAPE = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_heads": 32,
    "head_dim": 16,
    "intermediate_size": 64,
    "vocab_size": 50,
}
STEPS = {
    "shape": SHAPE,
    "dtype": "bfloat16",
    "memory": 5 * 10**9,
    "bandwidth": 1e10,
    "points": [
        point("MHA", 100, 1, 10**8, 0.105),
        point("MQA", 100, 1, 10**6, 0.1),
        point("MHA", 400, 1, 4 * 10**8, 0.14),
        point("MQA", 400, 1, 4 * 10**6, 0.1),
        point("MHA", 100, 4, 4 * 10**8, 0.42),
        point("MQA", 100, 4, 4 * 10**6, 0.12),
        point("MHA", 400, 4, 10**10, None),
        point("MQA", 400, 4, 10**8, 0.2),
    ],
}


def test_the_table_of_steps() -> None:
    found = report.tables({"steps": STEPS, "papers": []})
    assert found[0].title.endswith("2 layers of width 64, 32 query heads of 16, bfloat16")
    assert found[0].rows == [
        ["1 x 100", "100 MB", "9%", "105.0", "100.0", "1.05", "1.10"],
        ["1 x 400", "400 MB", "29%", "140.0", "100.0", "1.40", "1.39"],
        ["4 x 100", "400 MB", "29%", "420.0", "120.0", "3.50", "1.39"],
        ["4 x 400", "10 GB", "91%", "-", "200.0", "-", "10.00"],
    ]
    assert found[1].title == "steps: 400 tokens in the cache, in several shapes"
    assert found[1].rows == [["1 x 400", "140.0", "100.0"], ["4 x 100", "420.0", "120.0"]]


def test_the_sentences_on_steps_say_where_fewer_heads_pay_and_what_did_not_fit() -> None:
    said = "\n".join(report.notes({"steps": STEPS, "papers": PAPERS}))
    assert "less than 1.1 times at 1 x 100, where the cache is 9% of" in said
    assert "1.4 to 3 times at 1 x 400, where the cache is 29% of" in said
    assert "3 times and more at 4 x 100," in said
    assert "up to 40 %" not in said  # nothing is in that band
    assert "does not fit 5 GB: MHA 4 x 400 (10 GB)" in said
    assert "arXiv:1911.02150" in said
    assert "here: batch 4, length 100: 105,000 us, 30,000 us" in said
    assert "here: MQA: 100 to 120 ms per step" in said


def test_a_grid_without_a_comparison() -> None:
    grid = Grid([point("MHA", 100, 1, 10**10, None), point("MQA", 100, 1, 10**8, 0.1)])
    assert (grid.compared(), grid.same_tokens(), grid.speedup(100, 1)) == ([], [], None)
    assert grid.expected_speedup(100, 1) == pytest.approx(10)


def test_the_tables_of_memory() -> None:
    use = memory.Use("MQA", 1, formula_bytes=1000, measured_bytes=1011, max_context=77)
    too_large = memory.Use("MHA", 32, formula_bytes=32000, measured_bytes=None, max_context=2)
    found = memory.measure(memory.Plan(KINDS, context=5, batch=1, memory=500))
    assert [use.measured_bytes for use in found.uses] == [None] * 4
    found = replace(found, uses=[too_large, use])
    first, textbook = report.tables({"memory": asdict(found), "papers": []})
    assert first.rows == [
        ["MHA", "32", "32,000", "does not fit", "-", "2"],
        ["MQA", "1", "1,000", "1,011", "+1.10%", "77"],
    ]
    assert textbook.rows[0] == ["MHA", "128", "400 GB", "1/1"]
    assert textbook.rows[-1] == ["MQA", "1", "3.12 GB", "1/128"]


def test_polynomials_in_words() -> None:
    assert report.polynomial_text([0, 2e-2, 3.5e-4, -1e-8]) == "2e+04 n + 350 n^2 - 0.01 n^3 us"


def tiny_config(num_kv_heads: int, context: int) -> DecoderConfig:
    return replace(TINY, num_kv_heads=num_kv_heads, max_position=context)


def test_a_small_run_and_its_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shapes, "small_config", tiny_config)
    monkeypatch.setattr(
        shapes, "growth_config", lambda context: replace(TINY, max_position=context)
    )
    monkeypatch.setattr(steps, "measure_bandwidth", lambda: 1e10)
    monkeypatch.setattr(memory, "in_process_of_its_own", memory.growth_by_filling)
    grid = cost.QUICK | {
        "growth": {"longest": 64, "points": 4, "budget": 0.05, "checked": 8},
        "budget": 0.05,
        "memory": {"context": 50, "batch": 1},
    }
    monkeypatch.setattr(cost, "QUICK", grid)
    threads = torch.get_num_threads()
    options = ["--contexts", "16", "64", "--batches", "1", "2", "--threads", "1"]
    folder = tmp_path / "new" / "folder"
    try:
        assert exit_code("cost", "--quick", *options, "--output", str(folder)) == 0
    finally:
        torch.set_num_threads(threads)
    measured = capsys.readouterr().out
    found = json.loads((folder / "cost.json").read_text())
    assert found["growth"]["lengths"] == [16, 25, 40, 64]
    assert len(found["steps"]["points"]) == 4 * 2 * 2
    assert [use["formula_bytes"] for use in found["memory"]["uses"]] == [
        2 * 2 * heads * 16 * 50 * 2 for heads in (32, 8, 4, 1)
    ]
    assert found["threads"] == 1
    assert found["machine"]["date"]

    redrawn = tmp_path / "redrawn"
    file = str(folder / "cost.json")
    assert exit_code("cost", "--redraw", file, "--output", str(redrawn)) == 0
    names = {"growth.png", "speedup.png", "step_times.png", "cache_memory.png"}
    assert {path.name for path in redrawn.iterdir()} == names
    assert {path.name for path in folder.iterdir()} == {*names, "cost.json"}
    for name in names:
        assert (redrawn / name).read_bytes() == (folder / name).read_bytes()
    assert capsys.readouterr().out.split("\nwrote")[0] == measured.split("\nwrote")[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--section", "speed"], "invalid choice: 'speed'"),
        (["--contexts", "0"], "expected a positive whole number, got '0'"),
        (["--memory", "much"], "expected a size such as 24GiB or 80GB, got 'much'"),
        (
            ["--quick", "--section", "steps", "--memory", "1k"],
            "expected --memory for a cache of 131,072 bytes at least, the smallest one asked for, "
            "got 1,000",
        ),
        (["--redraw", "no/such.json"], "no/such.json: No such file or directory"),
        (
            ["--redraw", "other.json"],
            "expected other.json to be a report of mqa cost",
        ),
        (["--quick", "--section", "growth", "--output", "other.json"], "other.json: File exists"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.json").write_text('{"results": []}')
    assert exit_code("cost", *arguments) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"mqa cost: .*\n", error)
    assert sentence in error
