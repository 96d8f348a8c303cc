"""The reference decoder of this library as an engine, and the share of attention in its steps."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

import engine
from engine import MOST_TOKENS, PREFILL_CHUNK, Run
from mqa import Decoder
from mqa.cost.shapes import fill_with_random_values


class DecoderEngine:
    """A `Decoder` in eager mode or, with `compiled`, its decode step through `torch.compile`."""

    def __init__(self, model: Decoder, compiled: bool = False) -> None:
        self.model = model
        self.step = model.decode
        if compiled:
            self.step = torch.compile(self.step, fullgraph=True, backend=engine.COMPILE_BACKEND)
        self.cache: list[Tensor] = []
        self.context = 0

    @torch.no_grad()
    def prefill(self, tokens: Sequence[int]) -> None:
        """Compute the cache of `tokens`."""
        self._reserve(len(tokens))
        for start in range(0, len(tokens), PREFILL_CHUNK):
            chunk = torch.tensor([tokens[start : start + PREFILL_CHUNK]])
            length = torch.tensor([chunk.size(1)])
            self.model.extend(chunk, length, torch.tensor([start]), self.cache)

    def fill_with_random_values(self, context: int) -> None:
        """Pretend a context: speed does not depend on what is in the cache."""
        self._reserve(context)
        fill_with_random_values(self.cache)

    def _reserve(self, context: int) -> None:
        self.cache = []  # the old one is freed before there is a new one
        self.cache = self.model.new_cache(1, min(context + MOST_TOKENS, self.model.max_position))
        self.context = context

    @torch.no_grad()
    def decode(self, num_tokens: int) -> Run:
        """Write `num_tokens` tokens behind the context; the next call writes over them."""
        run = Run()
        token = 0
        for position in range(self.context, self.context + num_tokens):
            logits = self.step(torch.tensor([token]), torch.tensor([position]), self.cache)
            token = int(logits.argmax())
            run.add(token)
        return run

    def attention_share(self, num_tokens: int) -> float:
        """The part of the decode steps' time, in eager mode, that appends and attends."""
        with attention_timer(self.model) as attention:
            started = perf_counter()
            self.decode(num_tokens)
            return sum(attention) / (perf_counter() - started)


@contextmanager
def attention_timer(model: Decoder) -> Iterator[list[float]]:
    """Meanwhile, adds the seconds of every layer's `kv_append` and `attention` to the list."""
    seconds: list[float] = []

    def timed(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: Any) -> Tensor:
            started = perf_counter()
            out = attend(*arguments)
            seconds.append(perf_counter() - started)
            return out

        return call

    attentions = [layer.self_attn for layer in model.layers]
    for attention in attentions:
        attention.attend_mqa = timed(attention.attend_mqa)
    try:
        yield seconds
    finally:
        for attention in attentions:
            del attention.attend_mqa
