"""The memory that a cache takes, from the system's account of the process, against the formula.

Each kind of attention gets a process of its own: memory that one has freed may serve the next. A
cache is filled by the operator that decoders append with, so that every page of it is in use.
"""

import ctypes
import re
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch

from mqa import ops
from mqa.bench.progress import progress
from mqa.cache import KVCache
from mqa.config import DecoderConfig
from mqa.cost.shapes import describe, random_decoder
from mqa.cost.steps import DTYPE, formula_bytes
from mqa.plan import TEXTBOOK, TEXTBOOK_CONTEXT, CacheFormat, Estimate, compare

PIECE = 128  # tokens that are appended at once
ACCOUNT = Path("/proc/self/smaps_rollup")


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        configs: A decoder for each kind of attention; they differ in their KV heads alone.
        context: Tokens of a sequence.
        batch: Sequences.
        memory: Bytes that the cache may take.
    """

    configs: Mapping[str, DecoderConfig]
    context: int
    batch: int
    memory: int


@dataclass(frozen=True)
class Use:
    """The cache of one kind of attention.

    Attributes:
        kind: Of attention.
        num_kv_heads: Its KV heads.
        formula_bytes: `2 * L * B * H_kv * D * S * bytes`.
        measured_bytes: By how much filling it made the process grow; None where it does not fit
            the memory.
        max_context: Tokens of a sequence, at this batch, whose cache fits the memory.
    """

    kind: str
    num_kv_heads: int
    formula_bytes: int
    measured_bytes: int | None
    max_context: int


@dataclass(frozen=True)
class Memory:
    """What came out.

    Attributes:
        shape: Of the decoders.
        dtype: Of the cache.
        context: Tokens of a sequence.
        batch: Sequences.
        memory: Bytes that the cache may take.
        uses: By kind of attention.
        textbook_context: Tokens of the textbook's example.
        textbook: That example, by formula.
    """

    shape: dict[str, int]
    dtype: str
    context: int
    batch: int
    memory: int
    uses: list[Use]
    textbook_context: int
    textbook: list[Estimate]


def measure(plan: Plan) -> Memory:
    """Fills a cache of each kind in a process of its own."""
    uses = []
    for kind, config in progress([*plan.configs.items()], "memory"):
        size = formula_bytes(config, plan.context, plan.batch)
        uses.append(
            Use(
                kind=kind,
                num_kv_heads=config.num_kv_heads,
                formula_bytes=size,
                measured_bytes=in_process_of_its_own(config, plan.context, plan.batch)
                if size <= plan.memory
                else None,
                max_context=plan.memory // formula_bytes(config, 1, plan.batch),
            )
        )
    return Memory(
        shape=describe(next(iter(plan.configs.values()))),
        dtype=str(DTYPE).removeprefix("torch."),
        context=plan.context,
        batch=plan.batch,
        memory=plan.memory,
        uses=uses,
        textbook_context=TEXTBOOK_CONTEXT,
        textbook=compare(TEXTBOOK, CacheFormat(), context=TEXTBOOK_CONTEXT, batch=1),
    )


def in_process_of_its_own(config: DecoderConfig, context: int, batch: int) -> int:
    """Bytes that filling a cache adds to a new process."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as executor:
        return executor.submit(growth_by_filling, config, context, batch).result()


def growth_by_filling(config: DecoderConfig, context: int, batch: int) -> int:
    """Bytes that filling a cache adds to this process."""
    torch.set_num_threads(1)  # threads bring memory of their own
    # Keys and values are as wide with any width of the layers: narrow ones leave memory free.
    narrow = replace(config, hidden_size=8, intermediate_size=8, vocab_size=8)
    model = random_decoder(narrow, DTYPE)
    shape = (batch, config.num_kv_heads, min(PIECE, context), config.head_dim)
    pieces = torch.randn(2, *shape, dtype=DTYPE)
    _fill(KVCache(model, batch, pieces.size(3)), pieces)  # loads whatever takes part
    ctypes.CDLL(None).malloc_trim(0)  # or else a small cache may lie where others have been before
    before = resident_bytes()
    cache = KVCache(model, batch, context)
    _fill(cache, pieces)
    return resident_bytes() - before


def resident_bytes() -> int:
    """Memory of this process that is in use, by Linux's account."""
    found = re.search(r"^Rss:\s+(\d+) kB$", ACCOUNT.read_text(), re.MULTILINE)
    assert found, f"expected a line Rss in {ACCOUNT}"
    return int(found[1]) * 1024


def _fill(cache: KVCache, pieces: torch.Tensor) -> None:
    while (room := cache.capacity - int(cache.lengths.max())) > 0:
        key, value = pieces[..., : min(room, PIECE), :]
        start = cache.reserve(key.size(2))
        for keys, values in zip(cache.tensors[::2], cache.tensors[1::2], strict=True):
            ops.kv_append(keys, values, key, value, start)
        cache.advance(key.size(2))
