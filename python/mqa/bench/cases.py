"""What is measured: calls, and how many bytes, flops and exponentials each takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "float8_e4m3fn": 1}
QUANTISED = ("int8", "float8_e4m3fn")
SCALE_BYTES = 4  # a quantised cache has a float32 scale per token, for keys and values each

FLASH_DECODING_TOKENS = 65536  # sequences times context, but for the last case
FLASH_DECODING_BATCHES = (256, 128, 64, 32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class _OnCache:
    """A call on a cache.

    Attributes:
        cache_dtype: A key of `DTYPE_BYTES`.
    """

    cache_dtype: str

    @property
    def dtype(self) -> str:
        """Of query and result, and of what is appended: an 8-bit cache goes with bfloat16."""
        return "bfloat16" if self.is_quantised else self.cache_dtype

    @property
    def is_quantised(self) -> bool:
        """Whether the cache is an 8-bit one with scales."""
        return self.cache_dtype in QUANTISED


@dataclass(frozen=True)
class Case(_OnCache):
    """One call of attention: T query tokens of G heads over each KV head of S tokens.

    Attributes:
        group: G, the query heads of a KV head.
        head_dim: D, of keys and values.
        context: S, the tokens in the cache.
        batch: B, the sequences.
        tokens: T; 1 is a decode step, S a causal prefill.
        threads: Threads of the process; 1 for a GPU, which they only give work to.
        is_cold: Calls take turns over so many caches that none is in the processor's cache.
        kv_heads: H_kv, the KV heads.
    """

    group: int
    head_dim: int
    context: int
    batch: int
    tokens: int
    threads: int
    is_cold: bool
    kv_heads: int = 1

    @property
    def query_heads(self) -> int:
        """H_q: all of them."""
        return self.kv_heads * self.group

    @property
    def is_causal(self) -> bool:
        """Whether a query sees only the tokens up to its own."""
        return self.tokens > 1

    @property
    def cache_bytes(self) -> int:
        """Of one layer's keys and values, with their scales."""
        token = self.head_dim * DTYPE_BYTES[self.cache_dtype]
        token += SCALE_BYTES if self.is_quantised else 0
        return 2 * self.batch * self.kv_heads * self.context * token

    @property
    def bytes(self) -> int:
        """What a call has to read and write at least: the cache once, the query and the result."""
        rows = self.batch * self.query_heads * self.tokens
        return self.cache_bytes + 2 * rows * self.head_dim * DTYPE_BYTES[self.dtype]

    @property
    def exps(self) -> int:
        """One exponential for each query row and key that it sees."""
        hidden = self.tokens * (self.tokens - 1) // 2
        return self.batch * self.query_heads * (self.tokens * self.context - hidden)

    @property
    def flops(self) -> int:
        """A multiplication and an addition in each of the two products."""
        return 4 * self.head_dim * self.exps


def decode_cases(
    *,
    cache_dtypes: Sequence[str],
    groups: Sequence[int],
    head_dims: Sequence[int],
    contexts: Sequence[int],
    batches: Sequence[int],
    threads: Sequence[int],
    temperatures: Sequence[bool],
) -> Iterator[Case]:
    """All combinations of decode steps; the thread count changes last."""
    for num_threads, is_cold, dtype, head_dim, context, batch, group in product(
        threads, temperatures, cache_dtypes, head_dims, contexts, batches, groups
    ):
        yield Case(dtype, group, head_dim, context, batch, 1, num_threads, is_cold)


def prefill_cases(
    *,
    cache_dtypes: Sequence[str],
    groups: Sequence[int],
    head_dims: Sequence[int],
    lengths: Sequence[int],
    batches: Sequence[int],
    threads: Sequence[int],
) -> Iterator[Case]:
    """All combinations of causal prefills, which reuse their keys so much that they stay cached."""
    for num_threads, dtype, head_dim, length, batch, group in product(
        threads, cache_dtypes, head_dims, lengths, batches, groups
    ):
        yield Case(dtype, group, head_dim, length, batch, length, num_threads, is_cold=False)


def flash_decoding_cases(*, cache_dtypes: Sequence[str], threads: Sequence[int]) -> Iterator[Case]:
    """The grid that Flash-Decoding was published with: the same memory in many shapes.

    16 query heads over 2 KV heads of 128; at the end one sequence of twice the length.
    https://pytorch.org/blog/flash-decoding
    """
    sizes = [(batch, FLASH_DECODING_TOKENS // batch) for batch in FLASH_DECODING_BATCHES]
    sizes.append((1, 2 * FLASH_DECODING_TOKENS))
    for num_threads, dtype, (batch, context) in product(threads, cache_dtypes, sizes):
        yield Case(dtype, 8, 128, context, batch, 1, num_threads, is_cold=True, kv_heads=2)


@dataclass(frozen=True)
class AppendCase(_OnCache):
    """One call of kv_append: T tokens of B sequences with one KV head of `HEAD_DIM`.

    An 8-bit cache takes bfloat16 and quantises it; `copy_` writes to a bfloat16 cache then.

    Attributes:
        batch: B.
        tokens: T.
        threads: As in `Case`.
    """

    batch: int
    tokens: int
    threads: int

    HEAD_DIM: ClassVar[int] = 128

    @property
    def bytes(self) -> int:
        """What a call has to read and write at least."""
        return self._source_bytes + self.cache_bytes

    @property
    def copied_bytes(self) -> int:
        """What `copy_` reads and writes."""
        return 2 * self._source_bytes

    @property
    def cache_bytes(self) -> int:
        """Of the keys and values that are written, with their scales."""
        scale = SCALE_BYTES if self.is_quantised else 0
        return self._rows * (self.HEAD_DIM * DTYPE_BYTES[self.cache_dtype] + scale)

    @property
    def _source_bytes(self) -> int:
        return self._rows * self.HEAD_DIM * DTYPE_BYTES[self.dtype]

    @property
    def _rows(self) -> int:
        return 2 * self.batch * self.tokens
