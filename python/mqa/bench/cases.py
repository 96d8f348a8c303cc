"""What is measured: attention calls, and how many bytes, flops and exponentials each takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "float8_e4m3fn": 1}
QUANTISED = ("int8", "float8_e4m3fn")
SCALE_BYTES = 4  # a quantised cache has a float32 scale per token, for keys and values each


@dataclass(frozen=True)
class Case:
    """One call of attention: T query tokens of G heads over one KV head of S tokens.

    Attributes:
        cache_dtype: A key of `DTYPE_BYTES`. The query has the same, or bfloat16 for an 8-bit cache.
        group: G, the query heads.
        head_dim: D, of keys and values.
        context: S, the tokens in the cache.
        batch: B, the sequences.
        tokens: T; 1 is a decode step, S a causal prefill.
        threads: Threads of the process.
        is_cold: Calls take turns over so many caches that none is in the processor's cache.
    """

    cache_dtype: str
    group: int
    head_dim: int
    context: int
    batch: int
    tokens: int
    threads: int
    is_cold: bool

    @property
    def dtype(self) -> str:
        """Of query and result."""
        return "bfloat16" if self.is_quantised else self.cache_dtype

    @property
    def is_quantised(self) -> bool:
        """Whether the cache is an 8-bit one with scales."""
        return self.cache_dtype in QUANTISED

    @property
    def is_causal(self) -> bool:
        """Whether a query sees only the tokens up to its own."""
        return self.tokens > 1

    @property
    def cache_bytes(self) -> int:
        """Of one layer's keys and values, with their scales."""
        token = self.head_dim * DTYPE_BYTES[self.cache_dtype]
        token += SCALE_BYTES if self.is_quantised else 0
        return 2 * self.batch * self.context * token

    @property
    def bytes(self) -> int:
        """What a call has to read and write at least: the cache once, the query and the result."""
        rows = self.batch * self.group * self.tokens
        return self.cache_bytes + 2 * rows * self.head_dim * DTYPE_BYTES[self.dtype]

    @property
    def exps(self) -> int:
        """One exponential for each query row and key that it sees."""
        hidden = self.tokens * (self.tokens - 1) // 2
        return self.batch * self.group * (self.tokens * self.context - hidden)

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
