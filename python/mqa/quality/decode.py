"""How fast a decoder decodes, and what its cache takes."""

import time
from statistics import median

import torch

from mqa.cache import KVCache
from mqa.decoder import Decoder

WARM_UP_STEPS = 2


@torch.no_grad()
def decode_rates(
    models: dict[str, Decoder], *, batch: int, context: int, steps: int, rounds: int
) -> dict[str, float]:
    """Tokens per second of each of `models`, in turn: the medians of the rounds' steps.

    Args:
        models: by name; `max_position` is at least `context`.
        batch: sequences.
        context: tokens of each in the cache when the steps are done; what they are makes no
            difference to the speed.
        steps: of a round, for each model.
        rounds: how often each has its turn.
    """
    caches = {name: _filled(KVCache(model, batch, context)) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    tokens = torch.zeros(batch, dtype=torch.int64)
    for _ in range(rounds):
        for name, model in models.items():
            for step in range(-WARM_UP_STEPS, steps):
                positions = torch.full((batch,), context - steps + max(step, 0))
                start = time.perf_counter()
                model.decode(tokens, positions, caches[name].tensors)
                if step >= 0:
                    seconds[name].append(time.perf_counter() - start)
    return {name: batch / median(times) for name, times in seconds.items()}


def _filled(cache: KVCache) -> KVCache:
    for tensor in cache.tensors:
        tensor.normal_()
    return cache
