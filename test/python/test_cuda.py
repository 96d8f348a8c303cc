"""What only a GPU shows: streams, graphs, no waiting for it, safety of memory, large caches."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import mqa
import oracle
from cases import QUANTISED, Case, build, poisoned, quantised, random_mask, same_bits
from decoders import random_tokens, tiny_decoder
from devices import Ops
from transforms import paged

if not torch.cuda.is_available():
    pytest.skip(
        "no GPU here: on CUDA nothing of the Python tests runs; the kernels run in the emulation "
        "of the C++ tests (ctest -L emulated)",
        allow_module_level=True,
    )


def on_cuda(arguments: dict[str, Any]) -> Case:
    return Case(Ops("cuda").move(arguments))


class Decoding:
    """A step of decoding over a cache, in place: tokens in, out and positions + 1 out."""

    def __init__(self, B: int = 3, H_kv: int = 2, G: int = 4, D: int = 64, S: int = 300) -> None:
        on_device = {"device": "cuda", "dtype": torch.bfloat16}
        self.query = torch.zeros(B, H_kv * G, 1, D, **on_device)
        self.key, self.value = torch.zeros(2, B, H_kv, 1, D, **on_device)
        self.cache = [torch.full((B, H_kv, S, D), torch.nan, **on_device) for _ in range(2)]
        for x in self.cache:
            x[:, :, :B] = 1  # row b starts with b tokens
        self.positions = torch.arange(B, device="cuda")

    def step(self) -> Tensor:
        mqa.kv_append(*self.cache, self.key, self.value, self.positions)
        self.positions += 1
        return mqa.attention(self.query, *self.cache, seq_lens=self.positions)

    def feed(self, step: int) -> None:
        torch.manual_seed(step)
        for x in (self.query, self.key, self.value):
            x.copy_(torch.randn(x.shape))


def test_a_captured_step_replays_at_every_length() -> None:
    """Lengths and positions are read on the device, workspace and split come from shapes."""
    captured, eager = Decoding(), Decoding()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        captured.step()  # first calls allocate
    side.synchronize()
    captured.positions.copy_(eager.positions)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = captured.step()
    captured.positions.copy_(eager.positions)
    for step in range(250):
        captured.feed(step)
        eager.feed(step)
        graph.replay()
        assert same_bits(out.cpu(), eager.step().cpu()), f"step {step}"
    assert out.isfinite().all()


def test_a_captured_decode_step_generates_the_tokens_of_eager_mode() -> None:
    model = tiny_decoder(num_kv_heads=1).to("cuda")
    prompts, lengths = random_tokens(3, 5).to("cuda"), torch.tensor([5, 1, 3], device="cuda")
    caches = [model.new_cache(3, 40) for _ in range(2)]
    first, *_ = (model.prefill(prompts, lengths, cache).argmax(-1) for cache in caches)
    token, positions = first.clone(), lengths.clone()

    def step() -> None:
        token.copy_(model.decode(token, positions, caches[0]).argmax(-1))
        positions.add_(1)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # first calls allocate
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    token.copy_(first)
    positions.copy_(lengths)
    expected = first
    for number in range(30):
        graph.replay()
        expected = model.decode(expected, lengths + number, caches[1]).argmax(-1)
        assert torch.equal(token, expected), f"step {number}"


@contextmanager
def no_waiting_for_the_device() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


CALLS = {
    "plain": lambda: build(),
    "int32 lengths": lambda: build(T=3, seq_lens=[5, 0], is_causal=True),
    "everything": lambda: build(
        T=3,
        D_v=8,
        attn_mask=random_mask(torch.float32, (6, 3, 17)),
        window_left=4,
        window_right=1,
        softcap=2.0,
        alibi_slopes=torch.rand(2, 6),
        sinks=torch.randn(6),
        scale=0.1,
    ),
    "paged": lambda: paged(build(seq_lens=[17, 5]), 4),
    "int8": lambda: quantised(build(), torch.int8),
    "float8": lambda: quantised(build(), torch.float8_e4m3fn, per_head=True),
}


@pytest.mark.parametrize("name", CALLS)
def test_attention_and_its_gradients_do_not_wait(name: str) -> None:
    case = on_cuda(CALLS[name]())
    case["query"].requires_grad_()
    with no_waiting_for_the_device():
        out, lse = mqa.attention_lse(**case)
        (out.sum() + lse.sum()).backward()


CACHES = ("key_cache", "value_cache")


@pytest.mark.parametrize("cache", [torch.float16, *QUANTISED])
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("pages", [None, [[2, 0], [1, 3]]])
def test_append_does_not_wait(
    cache: torch.dtype, per_head: bool, pages: list[list[int]] | None
) -> None:
    new = torch.randn(2, 3, 2, 8)
    rows = 4 if pages else 2
    arguments: dict[str, Any] = {name: poisoned((rows, 3, 4, 8), cache) for name in CACHES}
    arguments |= {"key": new, "value": new, "positions": torch.tensor([0, 2], dtype=torch.int32)}
    if pages:
        arguments["block_table"] = torch.tensor(pages, dtype=torch.int32)
    if cache in QUANTISED:
        for name in ("key_scale", "value_scale"):
            arguments[name] = torch.ones(3) if per_head else torch.zeros(rows, 3, 4)
    arguments = on_cuda(arguments)
    with no_waiting_for_the_device():
        mqa.kv_append(**arguments)


@pytest.mark.parametrize("parts", [2, 65])
def test_merge_does_not_wait(parts: int) -> None:
    outs = list(torch.randn(parts, 2, 3, 1, 8, device="cuda"))
    lses = list(torch.randn(parts, 2, 3, 1, device="cuda"))
    with no_waiting_for_the_device():
        mqa.merge(outs, lses)


def test_everything_is_in_the_current_stream() -> None:
    """It sees what is written there late, and nothing in between is used too early."""
    case, side = build(S=300, dtype=torch.bfloat16), torch.cuda.Stream()
    expected = Ops("cuda").attention(**case)
    ready = on_cuda(case)
    late = {name: torch.full_like(x, torch.nan) for name, x in ready.tensors().items()}
    cache = [torch.full_like(late["key"], torch.nan) for _ in range(2)]
    positions = torch.zeros(2, dtype=torch.long, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        for name, x in late.items():
            x.copy_(ready[name])
        mqa.kv_append(*cache, late["key"], late["value"], positions)
        out, lse = mqa.attention_lse(late["query"], *cache)
        merged, _ = mqa.merge([out], [lse])
    side.synchronize()
    assert same_bits(merged.cpu(), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has one GPU")
def test_runs_on_the_device_of_the_tensors() -> None:
    case = build()
    expected = Ops("cuda:0").attention(**case)
    moved = {name: x.to("cuda:1") for name, x in case.tensors().items()}
    assert torch.cuda.current_device() == 0
    assert same_bits(mqa.attention(**moved).cpu(), expected)
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("position", [-(2**62), -2, -1, 15, 16, 2**31, 2**62])
def test_append_at_a_wrong_position_stays_in_its_row(position: int) -> None:
    new, room = torch.randn(3, 1, 2, 8), poisoned((5, 1, 16, 8), torch.float32)
    expected = room.clone()
    for b, first in [(0, 3), (2, 5)]:
        expected[1 + b, :, first : first + 2] = new[b]
    positions = torch.tensor([3, position, 5])
    Ops("cuda").kv_append(room[1:-1], room[1:-1], new, new, positions)
    rows = [0, 1, 3, 4]  # all but that of the wrong position
    assert same_bits(room[rows], expected[rows])


@pytest.mark.parametrize("page", [-(2**31), -1, 4, 2**31 - 1])
def test_append_to_a_wrong_page_writes_nothing(page: int) -> None:
    new, room = torch.randn(2, 1, 2, 8), poisoned((6, 1, 8, 8), torch.float32)
    expected = room.clone()
    expected[1 + 1, :, 7] = new[1, :, 0]  # slots 7 and 8 of row 1 lie in its pages 1 and 2
    expected[1 + 2, :, 0] = new[1, :, 1]
    table = torch.tensor([[page, page], [1, 2]], dtype=torch.int32)
    positions = torch.tensor([0, 7])
    Ops("cuda").kv_append(room[1:-1], room[1:-1], new, new, positions, block_table=table)
    assert same_bits(room, expected)


@pytest.mark.parametrize("lens", [[-5, 3], [17, 3], [2**31 - 1, 3]])
def test_lengths_outside_of_the_cache_are_clamped(lens: list[int]) -> None:
    case = build(S=16)
    actual = Ops("cuda").attention(**case, seq_lens=torch.tensor(lens))
    clamped = torch.tensor(lens).clamp(0, 16)
    assert same_bits(actual, Ops("cuda").attention(**case, seq_lens=clamped))


@pytest.mark.parametrize("page", [-1, 12, 2**31 - 1])
def test_page_numbers_outside_of_the_pool_stay_in_it(page: int) -> None:
    """The row with such a page may hold anything; the others are right."""
    case = paged(build(S=8, seq_lens=[8, 8]), 4)
    expected = Ops("cuda").attention(**case)
    wrong = case["block_table"].clone()
    wrong[0, 1] = page
    actual = Ops("cuda").attention(**case.but(block_table=wrong))
    torch.cuda.synchronize()
    assert same_bits(actual[1], expected[1])


def test_caches_of_more_than_2_31_elements() -> None:
    """Appended to and read at the far end, of rows that lie that far apart."""
    D, capacity, new = 128, 2**24 + 64, 40
    if torch.cuda.mem_get_info()[0] < 3 * D * capacity * 2:
        pytest.skip("less than 13 GB of the GPU's memory are free")
    case = build(B=2, H_kv=1, S=new, D=D, dtype=torch.bfloat16)
    cache = torch.empty(2, 1, capacity, D, dtype=torch.bfloat16, device="cuda")
    moved = on_cuda(case)
    ends = torch.tensor([100, capacity], device="cuda")
    mqa.kv_append(cache, cache, moved["key"], moved["key"], ends - new)
    for b, end in enumerate(ends.tolist()):
        assert torch.equal(cache[b, :, end - new : end], moved["key"][b])
    actual = mqa.attention(
        moved["query"], cache, cache, seq_lens=ends, is_causal=True, window_left=new - 1
    )
    expected = oracle.attention(case["query"], case["key"], case["key"])[0]
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=0.02, atol=0.02)


def test_debugging_checks_contents() -> None:
    """MQA_DEBUG=1: the messages of CPU calls, in a process of its own, since it is read once."""
    code = """
import mqa, torch
x = torch.zeros(2, 1, 4, 8, device="cuda")
calls = {
    "seq_lens": lambda: mqa.attention(x, x, x, seq_lens=torch.tensor([4, 5], device="cuda")),
    "positions": lambda: mqa.kv_append(x, x, x + 1, x + 1, torch.tensor([0, 1], device="cuda")),
}
for call in calls.values():
    try:
        call()
    except ValueError as error:
        print(str(error).splitlines()[0])
print(x.count_nonzero().item())
"""
    done = subprocess.run(
        ["env", "MQA_DEBUG=1", sys.executable, "-c", code], capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "mqa::attention: expected 0 <= seq_lens[1] <= 4 (key's slots), got 5",
        "mqa::kv_append: expected 0 <= positions[1] <= 0 (capacity 4 - 4 new tokens), got 1",
        "0",
    ], done.stderr
