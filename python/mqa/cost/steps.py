"""The time of a decode step with MHA, GQA and MQA over contexts and batches.

All kinds share the weights that they have in common, take turns, and read caches cut from the same
memory, which is filled once. A step is a whole one, from the token to the logits. Beside it stand
the bytes that it has to read, weights and cache, and the time that reading them alone would take.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from mqa.bench import floor_cpu
from mqa.bench.progress import progress
from mqa.bench.timing import Samples, interleave
from mqa.config import DecoderConfig
from mqa.cost.shapes import describe, fill_with_random_values, random_decoders
from mqa.decoder import Decoder
from mqa.plan import CacheFormat, Model, cache_bytes

DTYPE = torch.bfloat16
FILLED_TOKENS = 1024  # are drawn, and repeated in all of the caches' memory


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        configs: A decoder for each kind of attention; they differ in their KV heads alone.
        contexts: Tokens of a sequence in the cache.
        batches: Sequences.
        memory: Bytes that the cache may take.
        budget: Seconds for each combination, all kinds together.
    """

    configs: Mapping[str, DecoderConfig]
    contexts: Sequence[int]
    batches: Sequence[int]
    memory: int
    budget: float


@dataclass(frozen=True)
class Point:
    """One kind of attention at one context and batch.

    Attributes:
        kind: Of attention.
        num_kv_heads: Its KV heads.
        context: Tokens of a sequence in the cache, the new one included.
        batch: Sequences.
        weight_bytes: That a step reads.
        cache_bytes: That a step reads.
        read_seconds: That reading both takes at the machine's bandwidth.
        seconds: Of a step; None where the cache does not fit the memory.
    """

    kind: str
    num_kv_heads: int
    context: int
    batch: int
    weight_bytes: int
    cache_bytes: int
    read_seconds: float
    seconds: Samples | None


@dataclass(frozen=True)
class Steps:
    """What came out.

    Attributes:
        shape: Of the decoders.
        dtype: Of weights and cache.
        memory: Bytes that the cache may take.
        bandwidth: Bytes that the machine reads from memory per second.
        points: By batch, context and kind.
    """

    shape: dict[str, int]
    dtype: str
    memory: int
    bandwidth: float
    points: list[Point]


def measure(plan: Plan) -> Steps:
    """Times all kinds in turn, on `torch.get_num_threads()` threads.

    Raises:
        ValueError: No cache fits the memory, or what measures the bandwidth is missing.
    """
    sizes = {
        (kind, context, batch): formula_bytes(config, context, batch)
        for kind, config in plan.configs.items()
        for context, batch in product(plan.contexts, plan.batches)
    }
    fitting = [size for size in sizes.values() if size <= plan.memory]
    if not fitting:
        raise ValueError(
            f"expected --memory for a cache of {min(sizes.values()):,} bytes at least, the "
            f"smallest one asked for, got {plan.memory:,}"
        )
    bandwidth = measure_bandwidth()
    decoders = random_decoders(plan.configs, DTYPE)
    weight_bytes = {kind: sum(w.nbytes for w in m.parameters()) for kind, m in decoders.items()}
    pool = random_pool(max(fitting), plan.configs.values())
    points = []
    with torch.inference_mode():
        for batch, context in progress([*product(plan.batches, plan.contexts)], "steps"):
            timed = {
                kind: timed_step(decoder, pool, context, batch)
                for kind, decoder in decoders.items()
                if sizes[kind, context, batch] <= plan.memory
            }
            samples = interleave(timed, plan.budget) if timed else {}
            for kind, config in plan.configs.items():
                size = sizes[kind, context, batch]
                points.append(
                    Point(
                        kind=kind,
                        num_kv_heads=config.num_kv_heads,
                        context=context,
                        batch=batch,
                        weight_bytes=weight_bytes[kind],
                        cache_bytes=size,
                        read_seconds=(weight_bytes[kind] + size) / bandwidth,
                        seconds=samples.get(kind),
                    )
                )
    shape = describe(next(iter(plan.configs.values())))
    return Steps(shape, str(DTYPE).removeprefix("torch."), plan.memory, bandwidth, points)


def formula_bytes(config: DecoderConfig, context: int, batch: int) -> int:
    """Of a decoder's cache, by `mqa.plan`."""
    model = Model(config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim)
    cache_format = CacheFormat(str(DTYPE).removeprefix("torch."))
    return cache_bytes(model.as_configured(), cache_format, context=context, batch=batch)


def measure_bandwidth() -> float:
    """Bytes per second of reads from memory, on as many threads as torch uses."""
    floor = floor_cpu.measure(torch.get_num_threads())
    return floor.bandwidth(max(floor.read))


def random_pool(num_bytes: int, configs: Iterable[DecoderConfig]) -> Tensor:
    """Memory for a cache of up to `num_bytes`, flat, with random values."""
    head_dim = next(iter(configs)).head_dim
    blocks = math.ceil(num_bytes / DTYPE.itemsize / (FILLED_TOKENS * head_dim))
    pool = torch.empty(blocks, FILLED_TOKENS, head_dim, dtype=DTYPE)
    fill_with_random_values([pool])
    return pool.flatten()


def cut_cache(pool: Tensor, config: DecoderConfig, context: int, batch: int) -> list[Tensor]:
    """A cache like that of `Decoder.new_cache`, from the beginning of the memory."""
    shape = (2 * config.num_layers, batch, config.num_kv_heads, context, config.head_dim)
    return [*pool[: math.prod(shape)].view(shape).unbind()]


def timed_step(decoder: Decoder, pool: Tensor, context: int, batch: int) -> Callable[[int], float]:
    """Makes a step whose token is the last that the cache has room for; gives its seconds."""
    cache = cut_cache(pool, decoder.config, context, batch)
    tokens = torch.randint(decoder.config.vocab_size, (batch,))
    positions = torch.full((batch,), context - 1)
    decoder.decode(tokens, positions, cache)  # the first one allocates

    def timed(_: int) -> float:
        start = time.perf_counter()
        decoder.decode(tokens, positions, cache)
        return time.perf_counter() - start

    return timed
