"""The end-to-end benchmark: engines that do the same work, and what follows from the timings."""

import json
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM

import mqa
from decoder_engine import DecoderEngine, attention_timer
from decoders import VOCAB_SIZE, sharpen, tiny_decoder
from engine import WARM_UP_TOKENS, MissingEngineError, Run, measure, tokens_per_second
from llama_engine import LlamaEngine
from mqa.cost.shapes import KV_HEADS, billion_config, random_decoder
from results import OURS, ContextResult, Results, VariantResult, format_results, write_json
from results_plot import draw
from transformers_engine import TransformersEngine, dynamic_cache, static_cache

CONTEXT = [5, 17, 60, 2, 33, 8, 71]


def tiny_llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        num_hidden_layers=2,
        hidden_size=48,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=256,
    )
    llama = LlamaForCausalLM(config).eval().requires_grad_(False)
    sharpen(llama)
    return llama


def test_speed_is_that_of_the_median_step_after_the_warm_up() -> None:
    warm_up = [0.0, 100.0]
    assert len(warm_up) == WARM_UP_TOKENS
    assert tokens_per_second([*warm_up, 100.25, 100.75, 101.0]) == pytest.approx(1 / 0.25)


@pytest.fixture
def compiled_graphs(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what `torch.compile` traces, and leaves out Inductor, which takes minutes."""
    monkeypatch.setattr("engine.COMPILE_BACKEND", "eager")
    torch._dynamo.reset()
    counters["stats"].clear()
    return counters["stats"]


@pytest.mark.parametrize("compiled", [False, True])
def test_the_decoder_generates_behind_its_context_and_forgets_it_again(
    compiled: bool, compiled_graphs: Counter[str]
) -> None:
    model = tiny_decoder(max_position=256)
    engine = DecoderEngine(model, compiled)
    engine.prefill(CONTEXT)
    (expected,) = mqa.generate(model, [[*CONTEXT, 0]], 9, stop_tokens=())
    first, second = engine.decode(9), engine.decode(9)
    assert first.tokens == second.tokens == expected
    assert len(first.times) == 9
    assert first.times == sorted(first.times)
    assert compiled_graphs["unique_graphs"] == compiled


def test_a_long_context_is_prefilled_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decoder_engine.PREFILL_CHUNK", 3)
    model = tiny_decoder(max_position=256)
    engine = DecoderEngine(model)
    engine.prefill(CONTEXT)
    assert engine.decode(9).tokens == mqa.generate(model, [[*CONTEXT, 0]], 9, stop_tokens=())[0]


@pytest.mark.parametrize("compiled", [False, True])
def test_transformers_generates_behind_its_context_and_forgets_it_again(
    compiled: bool, compiled_graphs: Counter[str]
) -> None:
    model = tiny_llama()
    prompt = torch.tensor([[*CONTEXT, 0]])
    expected = model.generate(prompt, max_new_tokens=9, do_sample=False, eos_token_id=None)
    engine = TransformersEngine(
        model, compiled, new_cache=static_cache if compiled else dynamic_cache
    )
    engine.prefill(CONTEXT)
    runs = [engine.decode(9), engine.decode(9)]
    assert [run.tokens for run in runs] == 2 * [expected[0, len(CONTEXT) + 1 :].tolist()]
    assert [len(run.times) for run in runs] == [9, 9]
    assert bool(compiled_graphs["unique_graphs"]) == compiled


def fake_llama(folder: Path, decode: str) -> Path:
    """A Python whose llama_cpp continues with `context, context + 1, ...`, as a real one would."""
    (folder / "llama_cpp.py").write_text(
        textwrap.dedent(f"""
        class Llama:
            def __init__(self, file, n_ctx, n_threads, n_threads_batch, verbose):
                if file == "bad.gguf":
                    raise ValueError("no such model")
                self.n_tokens = 0
                print("noise of the library")
            def reset(self):
                self.n_tokens = 0
            def eval(self, tokens):
                {decode}
                self.n_tokens += len(tokens)
            def sample(self, temp):
                return self.n_tokens
        """)
    )
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def test_llama_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    engine = LlamaEngine(fake_llama(tmp_path, "pass"), Path("a.gguf"), threads=2, capacity=64)
    engine.prefill(CONTEXT)
    runs = [engine.decode(3), engine.decode(3)]
    engine.close()
    assert [run.tokens for run in runs] == [[8, 9, 10], [8, 9, 10]]
    assert runs[0].times == sorted(runs[0].times)
    assert engine.process.returncode is not None


@pytest.mark.parametrize(
    ("python", "file", "reason"),
    [
        ("none", "a.gguf", "cannot run .*none: No such file"),
        ("without", "a.gguf", "No module named 'llama_cpp' in .*pip install llama-cpp-python"),
        ("fake", "bad.gguf", "no such model"),
    ],
)
def test_a_missing_llama_says_why(tmp_path: Path, python: str, file: str, reason: str) -> None:
    without = tmp_path / "without"
    without.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    without.chmod(0o755)
    pythons = {"none": tmp_path / "none", "without": without, "fake": fake_llama(tmp_path, "pass")}
    with pytest.raises(MissingEngineError, match=reason):
        LlamaEngine(pythons[python], Path(file), threads=2, capacity=64)


def test_a_crash_of_llama_is_reported(tmp_path: Path) -> None:
    python = fake_llama(tmp_path, "import os; os.abort()")
    engine = LlamaEngine(python, Path("a.gguf"), threads=2, capacity=64)
    with pytest.raises(MissingEngineError, match="ended with code -6"):
        engine.prefill(CONTEXT)


class FakeEngine:
    """Takes `seconds[call]` for each step of a call; None is a failure."""

    def __init__(self, name: str, calls: list[str], seconds: Sequence[float | None]) -> None:
        self.name, self.calls, self.seconds = name, calls, iter(seconds)

    def prefill(self, tokens: Sequence[int]) -> None:
        raise NotImplementedError

    def decode(self, num_tokens: int) -> Run:
        self.calls.append(self.name)
        step = next(self.seconds)
        if step is None:
            raise RuntimeError("out of luck")
        return Run([0] * num_tokens, [step * i for i in range(num_tokens)])


def test_engines_take_turns_and_a_failing_one_drops_out() -> None:
    calls: list[str] = []
    failures: list[tuple[str, str]] = []
    engines = {
        "a": FakeEngine("a", calls, [9.0, 0.5, 0.25]),
        "b": FakeEngine("b", calls, [9.0, None]),
    }
    rates = measure(engines, 4, 2, lambda name, error: failures.append((name, str(error))))
    assert rates == {"a": [2.0, 4.0]}  # the first round warms up
    assert calls == ["a", "b", "a", "b", "a"]
    assert failures == [("b", "out of luck")]


def test_attention_is_timed_in_every_layer_and_only_meanwhile() -> None:
    model = tiny_decoder(max_position=256)
    engine = DecoderEngine(model)
    engine.prefill(CONTEXT)
    with attention_timer(model) as seconds:
        engine.decode(5)
    engine.decode(5)
    assert len(seconds) == 5 * model.config.num_layers
    assert all(second > 0 for second in seconds)
    assert 0 < engine.attention_share(5) < 1


@pytest.mark.parametrize("num_kv_heads", KV_HEADS.values())
def test_the_large_decoder_has_the_announced_shape(num_kv_heads: int) -> None:
    config = billion_config(num_kv_heads, 16384)
    with torch.device("meta"):
        model = mqa.Decoder(config)
        cache_bytes = sum(tensor.nbytes // 2 for tensor in model.new_cache(1, 16384))
    assert 0.95e9 < sum(weight.numel() for weight in model.parameters()) < 1.2e9
    assert cache_bytes == 2 * 16 * num_kv_heads * 64 * 16384 * 2


def test_random_weights_and_caches_give_finite_logits() -> None:
    config = mqa.DecoderConfig(
        num_layers=2,
        hidden_size=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=128,
        vocab_size=100,
        max_position=256,
    )
    engine = DecoderEngine(random_decoder(config, torch.bfloat16))
    engine.fill_with_random_values(40)
    assert {tensor.dtype for tensor in engine.cache} == {torch.bfloat16}
    assert all(tensor.isfinite().all() and tensor.std() > 0.5 for tensor in engine.cache)
    assert len(engine.decode(3).tokens) == 3
    logits = engine.model.decode(torch.tensor([1]), torch.tensor([40]), engine.cache)
    assert logits.isfinite().all()
    assert logits.std() > 0


RESULTS = Results(
    machine={"CPU": "a fast one"},
    smollm2=[
        ContextResult(
            context=6000,
            rates={OURS: [39.0, 40.0, 45.0], "transformers": [20.0, 16.0, 10.0]},
            attention_share=0.25,
            missing={"llama.cpp": "no such module"},
        )
    ],
    variants=[
        VariantResult("MHA", 32, 16384, 2 * 10**9, 4 * 2**30, [2.0, 1.0, 3.0], 0.75),
        VariantResult("MQA", 1, 16384, 10**9, 2**27, [7.0], 0.125),
    ],
)


def test_the_tables_show_medians_ratios_and_what_is_missing() -> None:
    table = [re.split("  +", line) for line in format_results(RESULTS).splitlines()]
    assert ["CPU: a fast one"] in table
    assert ["mqa, eager", "40.0", "39.0", "45.0", "1.00"] in table
    assert ["transformers", "16.0", "10.0", "20.0", "2.50"] in table
    assert ["attention takes 25% of the step of mqa, eager"] in table
    assert ["missing: llama.cpp: no such module"] in table
    assert ["MHA", "32", "2 GB", "4.29 GB", "2.0", "1.0", "3.0", "1.00", "75%"] in table
    assert ["MQA", "1", "1 GB", "134 MB", "7.0", "7.0", "7.0", "3.50", "12%"] in table


def test_json_and_plot_hold_the_same(tmp_path: Path) -> None:
    write_json(RESULTS, tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["smollm2"][0]["rates"]["transformers"] == [20, 16, 10]
    assert content["smollm2"][0]["mqa_over"] == {OURS: 1, "transformers": 2.5}
    assert content["smollm2"][0]["missing"] == {"llama.cpp": "no such module"}
    assert [variant["over_mha"] for variant in content["variants"]] == [1, 3.5]
    assert content["variants"][1]["attention_share"] == 0.125
    draw(RESULTS, tmp_path / "results.png")
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
