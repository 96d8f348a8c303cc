import argparse
import base64
import json
import math
import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from commands import exit_code
from mqa.__main__ import main
from mqa.bench import floor, floor_cpu, run
from mqa.bench.cases import AppendCase, Case, flash_decoding_cases
from mqa.bench.device import DEVICES, Cpu
from mqa.bench.extras import COPY, measure_append
from mqa.bench.floor_cpu import CpuFloor
from mqa.bench.floor_cuda import CudaFloor
from mqa.bench.floor_cuda import measure as measure_cuda_floor
from mqa.bench.inputs import Inputs, NotEnoughMemoryError, make_inputs, num_caches
from mqa.bench.measure import FloorGauge, Options, Result, difference, measure_case
from mqa.bench.others import Others
from mqa.bench.peers import CONTENDERS, OURS, OURS_PACKED, OURS_UNQUANTISED, PEERS
from mqa.bench.peers.contender import Contender
from mqa.bench.plots import series
from mqa.bench.reading import Copier, Reader
from mqa.bench.replay import MIN_SECONDS, replayed
from mqa.bench.report import Report, missing, notes, tables
from mqa.bench.summary import summarise
from mqa.bench.timing import MAX_SAMPLES, MIN_SAMPLES, Samples, Timed, interleave
from mqa.commands import bench

DECODE = Case("float32", 8, 64, 100, 2, 1, 1, is_cold=False)
CPU = Cpu()
MACHINE = CpuFloor(
    isa="amx",
    threads=1,
    read={1000: 8e9, 10_000: 4e9, 100_000: 2e9},
    float32_fma=1e9,
    bfloat16_dot=2e9,
    bfloat16_amx=8e9,
    exp_float32=1e8,
    exp_bfloat16=2e8,
)


class Clock:
    """Time that passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: float) -> Callable[[int], float]:
        def function(_: int) -> float:
            self.log.append(name)
            self.now += seconds
            return seconds

        return function


def samples(median: float) -> Samples:
    return Samples(median, median, median, 1)


def result(case: Case, seconds: dict[str, float], least: float = 1.0) -> Result:
    timed = {name: samples(value) for name, value in seconds.items()}
    return Result(case, 1, timed, {}, None, None, floor.Bound(least, "memory", 1.0))


@pytest.mark.parametrize("threads", [1, 2])
def test_tool_measures_positive_numbers(threads: int) -> None:
    measured = floor_cpu.measure(threads)
    assert measured.threads == threads
    assert [*measured.read] == sorted(measured.read)
    assert len(measured.read) > 5
    rates = [*measured.read.values(), measured.float32_fma]
    rates += [measured.exp_float32, measured.exp_bfloat16]
    # A core does more than 100 million and less than 10^15 of anything in a second.
    assert all(1e8 < rate < 1e15 for rate in rates)
    assert max(measured.read) == pytest.approx(2**30, rel=0.01)


def test_tool_leaves_out_units_above_the_capped_isa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MQA_CPU_ISA", "generic")
    measured = floor_cpu.measure(1)
    assert measured.isa == "generic"
    assert measured.bfloat16_dot is None
    assert measured.bfloat16_amx is None


@pytest.mark.parametrize("argument", ["0", "-1", "1025", "two", ""])
def test_tool_refuses_other_numbers_of_threads(argument: str) -> None:
    ended = subprocess.run([floor_cpu.TOOL, argument], capture_output=True, text=True)
    assert ended.returncode == 2
    assert re.fullmatch("mqa-floor: expected one argument, .* 1 to 1024\n", ended.stderr)


def test_missing_tool_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mqa-floor, found none: run scripts/setup"):
        floor_cpu.measure(1, tmp_path / "mqa-floor")


def test_work_of_a_decode_step() -> None:
    assert DECODE.cache_bytes == 2 * 2 * 100 * 64 * 4
    assert DECODE.bytes == DECODE.cache_bytes + 2 * (2 * 8 * 64 * 4)
    assert DECODE.exps == 2 * 8 * 100
    assert DECODE.flops == 2 * (2 * 8 * 100 * 64) * 2


def test_work_of_a_prefill_counts_what_is_visible() -> None:
    case = replace(DECODE, batch=1, tokens=4, context=4)
    assert case.exps == 8 * (1 + 2 + 3 + 4)


def test_quantised_cache_has_scales_and_a_bfloat16_query() -> None:
    case = replace(DECODE, cache_dtype="int8")
    assert case.dtype == "bfloat16"
    assert case.cache_bytes == 2 * 2 * 100 * (64 + 4)


@pytest.mark.parametrize(
    ("case", "machine", "term", "seconds"),
    [
        # 51,200 bytes of cache, 4,096 of query and 4,096 of result at 4 GB/s and up
        (replace(DECODE, group=1), {"float32_fma": 1e12, "exp_float32": 1e12}, "memory", None),
        (DECODE, {"exp_float32": 1e12}, "flops", 409_600 / 1e9),
        (DECODE, {"float32_fma": 1e12, "exp_float32": 1e6}, "exps", 1600 / 1e6),
        (replace(DECODE, cache_dtype="bfloat16"), {"exp_bfloat16": 1e12}, "flops", 409_600 / 8e9),
        (
            replace(DECODE, cache_dtype="bfloat16"),
            {"exp_bfloat16": 1e12, "bfloat16_amx": None},
            "flops",
            409_600 / 2e9,
        ),
        (replace(DECODE, cache_dtype="float16"), {"exp_float32": 1e12}, "flops", 409_600 / 1e9),
    ],
)
def test_floor_is_the_largest_term(
    case: Case, machine: dict[str, float], term: str, seconds: float | None
) -> None:
    bound = floor.bound(case, replace(MACHINE, **machine), working_set=10**12)
    assert bound.term == term
    assert bound.seconds == pytest.approx(seconds or case.bytes / 2e9)


@pytest.mark.parametrize(
    ("working_set", "bandwidth"), [(1, 8e9), (1000, 8e9), (99_999, 4e9), (10**9, 2e9)]
)
def test_bandwidth_of_a_working_set(working_set: int, bandwidth: float) -> None:
    assert MACHINE.bandwidth(working_set) == bandwidth


def test_bandwidth_read_during_the_case_counts_if_it_is_higher() -> None:
    machine = replace(MACHINE, float32_fma=1e15, exp_float32=1e15)
    bounds = [floor.bound(DECODE, machine, 10**9, read) for read in (0, 1e9, 5e9)]
    assert [DECODE.bytes / bound.seconds for bound in bounds] == pytest.approx([2e9, 2e9, 5e9])


def test_floor_is_measured_again_when_it_is_old() -> None:
    clock = Clock()
    gauge = FloorGauge(lambda threads: replace(MACHINE, threads=threads), 30, clock)
    for seconds, threads, measurements in [(0, 1, 1), (29, 1, 1), (2, 1, 2), (0, 2, 3), (29, 2, 3)]:
        clock.now += seconds
        assert gauge.floor(threads).threads == threads
        assert len(gauge.all) == measurements


def test_contenders_of_equal_speed_alternate() -> None:
    clock = Clock()
    functions = {name: clock.work(name, 1.0) for name in "abc"}
    timed = interleave(functions, budget=15, clock=clock)
    assert "".join(clock.log) == "abc" * 5
    assert timed["b"] == Samples(1.0, 1.0, 1.0, 5)


def test_call_numbers_run_through_all_contenders() -> None:
    calls: list[int] = []
    clock = Clock()

    def function(call: int) -> float:
        calls.append(call)
        clock.now += 1
        return 1

    interleave({"a": function, "b": function}, budget=8, clock=clock)
    assert calls == [*range(8)]


def test_slow_contender_takes_part_in_some_rounds_only() -> None:
    clock = Clock()
    functions = {"fast": clock.work("fast", 1.0), "slow": clock.work("slow", 10.0)}
    timed = interleave(functions, budget=200, clock=clock)
    assert timed["slow"].count == pytest.approx(10, abs=1)
    assert timed["fast"].count == pytest.approx(100, abs=10)
    gaps = [len(part) for part in "".join(name[0] for name in clock.log).split("s")[4:-1]]
    assert min(gaps) >= 5  # spread over the run


def test_very_slow_contender_is_called_once() -> None:
    clock = Clock()
    functions = {"fast": clock.work("fast", 0.001), "slow": clock.work("slow", 100.0)}
    timed = interleave(functions, budget=1, clock=clock)
    assert timed["slow"].count == 1
    assert timed["fast"].count == MIN_SAMPLES


def test_fast_contender_is_not_called_without_end() -> None:
    clock = Clock()
    timed = interleave({"a": clock.work("a", 1e-6)}, budget=1, clock=clock)
    assert timed["a"].count == MAX_SAMPLES


def test_pauses_take_budget_but_are_not_timed() -> None:
    clock = Clock()
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        clock.now += seconds

    functions = {name: clock.work(name, 1.0) for name in "ab"}
    timed = interleave(functions, budget=40, pauses={"b": 3.0}, clock=clock, sleep=sleep)
    assert timed["b"].maximum == 1.0
    assert sleeps == [3.0] * timed["b"].count
    assert timed["a"].count == pytest.approx(4 * timed["b"].count, abs=3)


def test_a_cpu_call_is_timed_alone_and_may_be_rehearsed() -> None:
    clock = Clock()
    durations = iter([5.0, 1.0, 7.0, 2.0, 3.0])
    calls: list[int] = []

    def function(call: int) -> None:
        calls.append(call)
        clock.now += next(durations)

    cpu = Cpu(clock)
    rehearsed = cpu.timed(function, 2, rehearse=True)
    assert [rehearsed(0), rehearsed(3)] == [1.0, 2.0]
    assert cpu.timed(function, 2, rehearse=False)(4) == 3.0
    assert calls == [0, 0, 1, 1, 0]


class Graphs:
    """A device on which each call takes a while, when it is made and not when it is recorded."""

    def __init__(self, seconds: float) -> None:
        self.call_seconds = seconds
        self.now = 0.0
        self.calls: list[int] = []
        self.recorded: list[int] | None = None

    def run(self, call: int) -> None:
        if self.recorded is not None:
            self.recorded.append(call)
            return
        self.calls.append(call)
        self.now += self.call_seconds

    def seconds(self, function: Callable[[], object]) -> float:
        start = self.now
        function()
        return self.now - start

    def capture(self, function: Callable[[], object]) -> Callable[[], object]:
        self.recorded = calls = []
        function()
        self.recorded = None
        return lambda: [self.run(call) for call in calls]


def test_a_replay_holds_all_caches_equally_often_and_lasts_long_enough() -> None:
    device = Graphs(seconds=MIN_SECONDS / 10)
    timed = replayed(device, device.run, 3, rehearse=False)
    device.calls.clear()
    assert timed(7) == pytest.approx(MIN_SECONDS / 10)
    assert device.calls == [0, 1, 2] * 4
    device.calls.clear()
    assert replayed(device, device.run, 20, rehearse=True)(0) == pytest.approx(MIN_SECONDS / 10)
    assert device.calls[-40:] == [*range(20)] * 2


def test_floor_of_a_gpu_is_a_copy_and_products() -> None:
    def seconds(function: Callable[[], object]) -> float:
        function()
        return 0.5

    gpu = measure_cuda_floor(torch.device("cpu"), seconds, 8 * 1024, 1, sizes={"float32": 64})
    assert gpu == CudaFloor(1, 2 * 1024 / 0.5, {"float32": 2 * 64**3 / 0.5})
    assert floor.bound(DECODE, gpu, 10**9).term == "memory"
    assert floor.bound(DECODE, gpu, 10**9, moved=1e12).term == "flops"


def test_copies_move_the_bytes_that_they_say() -> None:
    moves = Copier(10_000, torch.device("cpu")).prepare(3_000)
    assert moves.count == 3
    assert moves.bytes == 3_000
    moves.run(2)


def test_median_minimum_and_maximum() -> None:
    clock = Clock()
    durations = iter([6.0, 1.0, 3.0])

    def function(_: int) -> float:
        seconds = next(durations)
        clock.now += seconds
        return seconds

    assert interleave({"a": function}, budget=10, clock=clock)["a"] == Samples(3.0, 1.0, 6.0, 3)


@pytest.mark.parametrize(
    ("cold_bytes", "copies", "memory", "count"),
    [
        (10**9, 0, 10**12, -(-(10**9) // DECODE.cache_bytes)),
        (1, 0, 10**12, 2),  # one cache read twice would not be cold
        (10**9, 0, DECODE.cache_bytes * 10, 6),
        (10**9, 1, DECODE.cache_bytes * 10, 3),
    ],
)
def test_number_of_cold_caches(cold_bytes: int, copies: int, memory: int, count: int) -> None:
    assert num_caches(replace(DECODE, is_cold=True), cold_bytes, copies, memory) == count
    assert num_caches(DECODE, cold_bytes, copies, memory) == 1


def test_caches_that_do_not_fit_are_refused() -> None:
    with pytest.raises(NotEnoughMemoryError, match=r"needs 102 kB .* 102 kB are available"):
        num_caches(DECODE, 1, 0, DECODE.cache_bytes)


@pytest.mark.parametrize("cache_dtype", ["float32", "int8"])
def test_caches_are_equal_but_not_the_same_memory(cache_dtype: str) -> None:
    caches = make_inputs(replace(DECODE, cache_dtype=cache_dtype), 3, CPU).caches
    for name in ("key", "value", *(("key_scale", "value_scale") if cache_dtype == "int8" else ())):
        tensors = [getattr(cache, name) for cache in caches]
        assert all(torch.equal(tensor, tensors[0]) for tensor in tensors)
        assert len({tensor.data_ptr() for tensor in tensors}) == 3


def test_difference_is_relative_and_infinite_for_nan() -> None:
    ours = torch.tensor([1.0, -4.0])
    assert difference(ours, torch.tensor([1.0, -3.0])) == 0.25
    assert difference(ours, torch.tensor([math.nan, -4.0])) == math.inf
    assert difference(ours, torch.zeros(3)) == math.inf


@pytest.mark.parametrize("cache_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("name", PEERS)
def test_peers_agree_with_ours_or_say_why_not(cache_dtype: str, tokens: int, name: str) -> None:
    if name == "FlexAttention" and cache_dtype != "float32":
        pytest.skip("compiles for seconds; the other dtypes take the same path")
    context = tokens if tokens > 1 else 100
    case = replace(DECODE, cache_dtype=cache_dtype, group=6, tokens=tokens, context=context)
    measured = measure_case(case, MACHINE, Reader(1024), Options([OURS, name], 0.001, 1), CPU)
    if name in measured.problems:
        assert re.search(
            "No module named|cannot mask|only$|only decode|No available kernel",
            measured.problems[name],
        )
    else:
        assert measured.seconds[name].median > 0


@pytest.mark.parametrize("cache_dtype", ["int8", "float8_e4m3fn"])
def test_quantised_cache_is_compared_with_a_bfloat16_one(cache_dtype: str) -> None:
    case = replace(DECODE, cache_dtype=cache_dtype, is_cold=True)
    options = Options([OURS, OURS_UNQUANTISED, "SDPA"], 0.01, 10 * case.cache_bytes)
    measured = measure_case(case, MACHINE, Reader(10**6), options, CPU)
    assert {*measured.seconds} == {OURS, OURS_UNQUANTISED}
    assert measured.problems == {"SDPA": f"reads no {cache_dtype} cache with scales"}
    assert measured.num_caches == 10
    assert measured.moved_bandwidth is not None
    assert measured.moved_bandwidth > 0


@pytest.mark.parametrize("cache_dtype", ["float32", "bfloat16", "int8"])
def test_packed_keys_are_timed_where_a_decode_step_can_have_them(cache_dtype: str) -> None:
    decode = replace(DECODE, cache_dtype=cache_dtype, context=48)
    options = Options([OURS, OURS_PACKED], 0.001, 1)
    for case, timed in [
        (decode, {OURS, OURS_PACKED}),
        (replace(decode, context=47), {OURS}),
        (replace(decode, tokens=48), {OURS}),
    ]:
        measured = measure_case(case, MACHINE, Reader(1024), options, CPU)
        assert {*measured.seconds} == timed
        assert not measured.problems


def test_means_and_minima() -> None:
    results = [
        result(DECODE, {OURS: 2.0, "SDPA": 4.0, "matmul+softmax": 1.0}),
        result(DECODE, {OURS: 1.0, OURS_PACKED: 0.5, "SDPA": 8.0}, least=0.25),
        result(replace(DECODE, tokens=100), {OURS: 1.0, "vLLM": 3.0}),
        result(replace(DECODE, cache_dtype="int8"), {OURS: 1.0, OURS_UNQUANTISED: 1.5}),
    ]
    by_name = {summary.name: summary for summary in summarise(results)}
    decode = by_name["decode, warm"]
    assert decode.cases == 2
    assert decode.best_peer == pytest.approx((2.0, 0.5))  # (1 / 2 * 8 / 1) ** 0.5
    assert decode.sdpa == pytest.approx((4.0, 2.0))
    assert decode.floor == pytest.approx((math.sqrt(0.5 * 0.25), 0.25))
    assert decode.packed == pytest.approx((16.0, 16.0))
    assert by_name["prefill"].best_peer == pytest.approx((3.0, 3.0))
    assert by_name["prefill"].packed is None
    assert by_name["prefill"].sdpa is None
    assert by_name["decode, warm, int8"].best_peer == pytest.approx((1.5, 1.5))


def test_table_has_bytes_per_second_and_their_share_of_memory() -> None:
    one = replace(result(DECODE, {OURS: 1e-6}), bound=floor.Bound(1e-7, "memory", 4e11))
    (table,) = [t for t in tables(Report({}, {}, [], results=[one])) if t.title == "decode, warm"]
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert DECODE.bytes == 110_592
    assert (row["GB/s"], row["of memory"], row["of floor"]) == ("110.6", "0.28", "0.10")


def test_plotted_series_is_the_longest_and_most_typical() -> None:
    cases = [
        replace(DECODE, group=group, head_dim=head_dim, context=8192)
        for head_dim in (64, 128)
        for group in (8, 1)
    ]
    cases.append(replace(DECODE, group=1, head_dim=128, context=512))
    chosen = series([result(case, {OURS: 1.0}) for case in cases], "group")
    assert [(r.case.group, r.case.head_dim) for r in chosen] == [(1, 128), (8, 128)]


def test_a_contender_that_cannot_be_timed_is_left_out() -> None:
    class Picky(Cpu):
        def timed(self, run: Callable[[int], object], count: int, *, rehearse: bool) -> Timed:
            if "sdpa" in getattr(run, "__module__", ""):
                raise RuntimeError("cannot be captured")
            return super().timed(run, count, rehearse=rehearse)

    options = Options([OURS, "SDPA", "matmul+softmax"], 0.001, 1)
    measured = measure_case(DECODE, MACHINE, Reader(1024), options, Picky())
    assert measured.problems == {"SDPA": "cannot be captured"}
    assert {*measured.seconds} == {OURS, "matmul+softmax"}


def test_what_was_measured_is_kept_when_something_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(case: Case, *_: object) -> Result:
        if case.group == 8:
            raise RuntimeError("the device is lost")
        return result(case, {OURS: 1.0})

    monkeypatch.setattr(run, "measure_case", measure)
    monkeypatch.setattr(floor_cpu, "measure", lambda threads: replace(MACHINE, threads=threads))
    grid = "--table decode --dtype fp32 --group 1 8 --head-dim 64 --context 128 --batch 1 --warm"
    with pytest.raises(RuntimeError, match="the device is lost"):
        main(["bench", *grid.split(), "--threads", "1", "--output", str(tmp_path)])
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["case"]["group"] for row in report["results"]] == [1]


def test_names_of_the_command_line_are_those_of_the_peers() -> None:
    names = {name for of_device in bench.PEER_NAMES.values() for name in of_device}
    assert {*PEERS} == names
    assert {*bench.PEER_NAMES} == {*bench.FULL} == {*bench.QUICK} == {*DEVICES}


def absent(inputs: Inputs) -> Contender:
    raise ImportError("No module named 'vllm'")


def wrong(inputs: Inputs) -> Contender:
    return Contender(lambda _: torch.zeros_like(inputs.query))


def broken_on_float32(inputs: Inputs) -> Contender:
    if inputs.case.dtype == "float32":
        raise RuntimeError("no float32\nand more lines")
    return CONTENDERS[OURS](inputs)


def test_small_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(CONTENDERS, "vLLM", absent)
    monkeypatch.setitem(CONTENDERS, "SDPA folded", wrong)
    monkeypatch.setitem(CONTENDERS, "onnxruntime", broken_on_float32)
    monkeypatch.setattr(floor_cpu, "measure", lambda threads: replace(MACHINE, threads=threads))
    monkeypatch.setitem(bench.FULL["cpu"], "trained", (64,))
    grid = "--dtype fp32 bf16 --group 1 8 --head-dim 64 --context 128 256 --batch 1 2 --threads 1"
    peers = ["--peer", "SDPA", "SDPA folded", "matmul+softmax", "onnxruntime", "vLLM"]
    how = "--prefill 64 --budget 0.01 --cold-bytes 4MiB"
    output = ["--output", str(tmp_path / "out")]
    assert main(["bench", *grid.split(), *how.split(), *peers, *output]) == 0

    report = json.loads((tmp_path / "out/report.json").read_text())
    assert {*report} == {
        "machine",
        "versions",
        "command",
        "floors",
        "results",
        "skipped",
        "append",
        "overhead",
        "training",
        "missing",
        "summaries",
    }
    assert {"date", "CPU", "cores"} <= {*report["machine"]}
    assert {"python", "torch"} <= {*report["versions"]}
    assert report["floors"][0]["read"] == {"1000": 8e9, "10000": 4e9, "100000": 2e9}
    assert report["missing"]["vLLM"] == "No module named 'vllm'"
    assert report["missing"]["SDPA folded"].startswith("wrong result: differs from mqa by 1 of")
    cases = [row["case"] for row in report["results"]]
    decode = [case for case in cases if case["tokens"] == 1]
    assert len(decode) == 2 * 2 * 2 * 2 * 2  # dtypes, groups, contexts, batches, cold and warm
    assert len(cases) == len(decode) + 2 * 2  # dtypes and groups
    for row in report["results"]:
        assert {OURS, "SDPA", "matmul+softmax"} <= {*row["seconds"]}
        assert ("onnxruntime" in row["seconds"]) == (row["case"]["cache_dtype"] == "bfloat16")
        ours = row["seconds"][OURS]
        assert 0 < ours["minimum"] <= ours["median"] <= ours["maximum"]
        best = min(row["seconds"][name]["median"] for name in PEERS if name in row["seconds"])
        assert row["speedup_best_peer"] == pytest.approx(best / ours["median"])
        assert row["floor_fraction"] == pytest.approx(row["bound"]["seconds"] / ours["median"])
        assert row["num_caches"] > 1 or not row["case"]["is_cold"]
    assert {(row["case"]["cache_dtype"], row["case"]["tokens"]) for row in report["append"]} == {
        (dtype, tokens) for dtype in ("float32", "bfloat16") for tokens in (1, 512, 8192)
    }
    assert [row["dtype"] for row in report["overhead"]] == ["float32", "bfloat16"]

    page = (tmp_path / "out/report.html").read_text()
    plots = ("time_by_group", "time_by_context", "time_by_batch", "cache_bytes", "roofline")
    for name in plots:
        image = (tmp_path / f"out/{name}.png").read_bytes()
        assert image.startswith(b"\x89PNG")
        assert base64.b64encode(image).decode() in page

    printed = capsys.readouterr().out
    for text in (
        "missing: vLLM: No module named 'vllm'",
        "not in 18 cases: onnxruntime: no float32\n",
        "decode, cold, bfloat16",
        "overhead of a call",
    ):
        assert text in printed
    assert re.search(r"^cache +thr .* SDPA folded ms ", printed, re.MULTILINE)
    assert len(re.findall(r"^(?:float32|bfloat16) .* wrong ", printed, re.MULTILINE)) == len(cases)


def test_disturbed_case_is_measured_again_and_the_quieter_result_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quiet, loud = (replace(DECODE, group=group) for group in (1, 2))
    others = {quiet: iter([0.1]), loud: iter([1.0, 0.5])}

    def measure(case: Case, *_: object) -> Result:
        return replace(result(case, {OURS: 1.0}), others=next(others[case]))

    monkeypatch.setattr(run, "measure_case", measure)
    monkeypatch.setattr(floor_cpu, "measure", lambda _: MACHINE)
    report = Report({}, {}, [])
    plan = run.Plan([quiet, loud], [], [], [], Options([OURS], 1, 1024), None)
    run.run(plan, report, lambda: None, 0, CPU)
    assert [r.others for r in report.results] == [0.1, 0.5]
    (note,) = notes(report)
    assert note.startswith("disturbed: 1 cases")


def test_case_too_large_and_interrupted_ones_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [replace(DECODE, group=group) for group in (1, 2, 3, 4)]

    def measure(case: Case, *_: object) -> Result:
        if case.group == 1:
            raise NotEnoughMemoryError("too large")
        if case.group == 3:
            raise KeyboardInterrupt
        return result(case, {OURS: 1.0})

    monkeypatch.setattr(run, "measure_case", measure)
    monkeypatch.setattr(floor_cpu, "measure", lambda _: MACHINE)
    report = Report({}, {}, [])
    plan = run.Plan(cases, [], [], [], Options([OURS], 1, 1024), None)
    run.run(plan, report, lambda: None, 0, CPU)
    assert [r.case.group for r in report.results] == [2]
    reasons = [(case.group, reason) for case, reason in report.skipped]
    assert reasons == [(1, "too large"), (3, "interrupted"), (4, "interrupted")]


def test_others_are_all_but_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = os.sysconf("SC_CLK_TCK")
    stat = tmp_path / "stat"
    monkeypatch.setattr(time, "monotonic", lambda: wall)
    monkeypatch.setattr(time, "process_time", lambda: own)

    # Seconds of user, nice, system, idle, waiting, interrupts, soft ones, stolen, guests.
    def account(*seconds: float) -> None:
        ticks = " ".join(str(round(s * second)) for s in seconds)
        stat.write_text(f"cpu  {ticks}\ncpu0 1 2 3\n")

    wall, own = 100.0, 7.0
    account(10, 1, 5, 1000, 3, 0, 0, 0, 50, 50)
    others = Others(stat)
    wall, own = 104.0, 10.0
    account(14, 2, 6, 1001, 4, 0.5, 0.25, 0.25, 60, 60)
    assert others.cores() == pytest.approx((4 + 1 + 1 + 0.5 + 0.25 + 0.25 - 3) / 4)
    assert Others(tmp_path / "missing").cores() is None


@pytest.mark.parametrize(
    ("option", "temperatures"), [([], {True, False}), (["--cold"], {True}), (["--warm"], {False})]
)
def test_cold_and_warm_select_decode_cases(option: list[str], temperatures: set[bool]) -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    plan = bench.make_plan(parser.parse_args(["--table", "decode", *option]), 1)
    assert {case.is_cold for case in plan.cases} == temperatures
    assert len(plan.cases) == 5 * 7 * 3 * 3 * 2 * len(bench.FULL["cpu"]["threads"]) * len(
        temperatures
    )


def test_selected_group_and_head_dim_hold_for_prefill_too() -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    options = "--table prefill --dtype int8 fp32 --group 3 --head-dim 80 --threads 2"
    plan = bench.make_plan(parser.parse_args(options.split()), 1)
    assert plan.append == plan.overhead == []
    assert [*plan.cases] == [
        Case("float32", 3, 80, length, 1, length, 2, False)
        for length in bench.FULL["cpu"]["prefill"]
    ]


def test_a_gpu_has_a_grid_of_its_own() -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    plan = bench.make_plan(parser.parse_args(["--device", "cuda"]), 123)
    decode = [case for case in plan.cases if case.tokens == 1 and case.kv_heads == 1]
    assert len(decode) == 4 * 6 * 3 * 4 * 3
    assert all(case.is_cold for case in decode)
    flash_decoding = [case for case in plan.cases if case.kv_heads == 2]
    assert len(flash_decoding) == 4 * 10
    assert plan.overhead == []
    assert plan.options.cold_bytes == 123
    assert "FlashInfer" in plan.options.contenders
    assert "vLLM" not in plan.options.contenders


def test_grid_of_flash_decoding_has_the_same_memory_in_many_shapes() -> None:
    cases = [*flash_decoding_cases(cache_dtypes=["bfloat16"], threads=[1])]
    assert {case.batch * case.context for case in cases[:-1]} == {65536}
    assert cases[-1].context == 131072
    assert {case.query_heads for case in cases} == {16}
    assert cases[0].cache_bytes == 2 * 65536 * 2 * 128 * 2


@pytest.mark.parametrize("cache_dtype", ["float32", "int8"])
def test_append_counts_bytes_and_writes_every_sequence(cache_dtype: str) -> None:
    case = AppendCase(cache_dtype, 3, 5, 1)
    measured = measure_append(case, 0.001, CPU)
    read = 2 * 3 * 5 * 128 * (2 if cache_dtype == "int8" else 4)
    written = 2 * 3 * 5 * (128 + 4) if cache_dtype == "int8" else read
    assert measured.bytes == {OURS: read + written, COPY: 2 * read}
    assert measured.seconds[OURS].median > 0


@pytest.mark.parametrize("name", ["SDPA", "SDPA folded", "matmul+softmax"])
def test_peers_take_several_kv_heads(name: str) -> None:
    case = replace(DECODE, group=4, kv_heads=2)
    measured = measure_case(case, MACHINE, Reader(1024), Options([OURS, name], 0.001, 1), CPU)
    assert measured.problems == {}


def test_deadline_leaves_cases_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "QUICK_DEADLINE", 0)
    output = ["--output", str(tmp_path)]
    assert main(["bench", "--quick", "--table", "decode", *output]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["results"] == []
    assert len(report["skipped"]) == 3 * 4 * 2 * 2
    assert "left out 48 cases: not begun within 0 s" in capsys.readouterr().out


def test_reason_of_a_contender_that_was_timed_once_is_no_reason_to_call_it_missing() -> None:
    failed = replace(result(DECODE, {OURS: 1.0}), problems={"SDPA": "a", "vLLM": "b"})
    assert missing([failed, result(DECODE, {OURS: 1.0, "SDPA": 1.0})]) == {"vLLM": "b"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--group", "0"], "argument --group: expected a positive whole number, got '0'"),
        (["--dtype", "float64"], "argument --dtype: invalid choice: 'float64'"),
        (["--peer", "nobody"], "argument --peer: invalid choice: 'nobody'"),
        (["--cold", "--warm"], "argument --warm: not allowed with argument --cold"),
        (["--budget", "nan"], "argument --budget: expected a positive number .* got 'nan'"),
        (["--cold-bytes", "lots"], "argument --cold-bytes: expected a size .* got 'lots'"),
        (["--output", "file"], "file: File exists"),
        (["--quick", "--output", "folder"], "expected the program .*mqa-floor, found none"),
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        pytest.param(
            ["--device", "cuda", "--output", "folder"],
            "expected a GPU for the device cuda, but torch finds none",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(floor_cpu.measure, "__defaults__", (tmp_path / "mqa-floor",))
    Path("file").touch()
    code = exit_code("bench", *arguments)
    error = capfd.readouterr().err
    assert code == 2
    assert re.search(f"(?m)^mqa bench: .*{sentence}", error)
