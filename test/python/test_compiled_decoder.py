"""The reference decoder under torch.compile: one graph, the caches written where they are."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code

import mqa
from cases import same_bits
from decoders import QUICK_COMPILE, random_tokens, tiny_decoder

CAPACITY = 4099  # a number that nothing else in the generated code has


def run(steps: int, step: Callable[[Tensor], Tensor], token: Tensor) -> Tensor:
    """Greedy tokens `[steps, B]`."""
    tokens = [token]
    for _ in range(steps):
        tokens.append(step(tokens[-1]).argmax(-1))
    return torch.stack(tokens[1:])


class Generation:
    """A ragged batch behind its prompts: every call of `step` is one token more."""

    def __init__(self, model: mqa.Decoder, decode: Callable[..., Tensor]) -> None:
        self.decode = decode
        self.cache = model.new_cache(2, CAPACITY)
        for x in self.cache:
            x.zero_()
        self.positions = torch.tensor([5, 3])
        torch.manual_seed(0)
        self.first = model.prefill(random_tokens(2, 5), self.positions, self.cache).argmax(-1)

    def step(self, token: Tensor) -> Tensor:
        logits = self.decode(token, self.positions, self.cache)
        self.positions = self.positions + 1
        return logits


def largest_allocation(call: Callable[[], Any]) -> int:
    """Bytes of the largest piece of memory that `call` asks for."""
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    kineto = profile.profiler.kineto_results  # type: ignore[union-attr]
    return max(event.nbytes() for event in kineto.events() if event.name() == "[memory]")


@torch._inductor.config.patch(QUICK_COMPILE)
def test_a_hundred_steps_are_one_graph_that_copies_no_cache() -> None:
    torch.compiler.reset()
    model = tiny_decoder(num_kv_heads=1, max_position=CAPACITY)
    counter = CompileCounterWithBackend("inductor")
    compiled = Generation(model, torch.compile(model.decode, fullgraph=True, backend=counter))
    eager = Generation(model, model.decode)
    addresses = [x.data_ptr() for x in compiled.cache]

    first, (code,) = run_and_get_code(run, 1, compiled.step, compiled.first)
    more = run(99, compiled.step, first[0])
    assert torch.equal(torch.cat([first, more]), run(100, eager.step, eager.first))
    assert counter.frame_count == 1
    for a, e in zip(compiled.cache, eager.cache, strict=True):
        torch.testing.assert_close(a, e, atol=1e-4, rtol=1e-4)
    assert [x.data_ptr() for x in compiled.cache] == addresses

    cache_bytes = compiled.cache[0].nbytes
    assert largest_allocation(lambda: compiled.step(more[-1])) < cache_bytes / 10
    body = code[: code.index("def get_args")]
    sized = [line for line in body.splitlines() if re.search(rf"\b{CAPACITY}\b", line)]
    assert sized
    assert all("assert_size_stride" in line for line in sized)  # of the inputs: nothing else
    assert body.count("torch.ops.mqa.kv_append.default(arg") == model.num_layers


@torch._dynamo.config.patch(error_on_recompile=True)
def test_batches_and_prompts_of_any_length_are_one_graph() -> None:
    torch.compiler.reset()
    model = tiny_decoder(num_kv_heads=1, num_layers=1)
    prefill, decode = (
        torch.compile(method, fullgraph=True, dynamic=True, backend="aot_eager")
        for method in (model.prefill, model.decode)
    )
    for B, T, capacity in [(3, 7, 30), (2, 12, 21), (5, 4, 60)]:
        tokens, lengths = random_tokens(B, T), torch.randint(1, T + 1, (B,))
        caches = [[x.zero_() for x in model.new_cache(B, capacity)] for _ in range(2)]
        for (first, then), cache in zip(
            [(prefill, decode), (model.prefill, model.decode)], caches, strict=True
        ):
            logits = first(tokens, lengths, cache)
            cache.append(then(logits.argmax(-1), lengths, cache))
        for actual, expected in zip(*caches, strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("lengths", [[0, 3], [3, 4]])
def test_a_compiled_prefill_refuses_lengths_outside_the_tokens(lengths: list[int]) -> None:
    model = tiny_decoder(num_layers=1)
    cache = [x.zero_() for x in model.new_cache(2, 4)]
    prefill = torch.compile(model.prefill, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"extend: expected lengths in \[1, T\]"):
        prefill(random_tokens(2, 3), torch.tensor(lengths), cache)
    assert all(same_bits(x, torch.zeros_like(x)) for x in cache)


@torch.no_grad()
@torch._inductor.config.patch(QUICK_COMPILE | {"freezing": True})
def test_frozen_weights_are_rearranged_and_give_logits_as_exact() -> None:
    torch.compiler.reset()
    exact = tiny_decoder(num_kv_heads=1, max_position=CAPACITY).bfloat16().float().eval()
    model = mqa.Decoder.from_weights(exact.config, exact.state_dict()).bfloat16().eval()
    compiled = Generation(model, torch.compile(model.decode, fullgraph=True))
    logits, (code,) = run_and_get_code(compiled.step, compiled.first)
    eager, right = (Generation(m, m.decode).step(compiled.first) for m in (model, exact))
    assert (logits - right).abs().max() <= 2 * (eager - right).abs().max()
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert "mkldnn._linear_pointwise" in code
