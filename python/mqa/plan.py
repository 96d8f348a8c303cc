"""How many bytes a key-value cache takes, and what fits into a given memory.

A cache of `L` layers for `B` sequences of `S` tokens holds one key and one value of `D` elements
per KV head: `2 * L * B * H_kv * D * S * bytes`. Multi-head latent attention (MLA) keeps one
compressed vector per token instead: `L * B * (kv_lora_rank + qk_rope_head_dim) * S * bytes`.

8-bit caches also store the float32 scales that dequantise them, by default one per vector (per
token and KV head, for the key and for the value each). They are part of every figure here.
"""

from dataclasses import dataclass

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "int8": 1}
SCALE_BYTES = 4
# Group sizes (query heads per KV head) that published GQA models use.
GROUP_SIZES = (3, 4, 8, 16)


@dataclass(frozen=True)
class CacheFormat:
    """How the elements of a cache are stored.

    Attributes:
        dtype: A key of `DTYPE_BYTES`.
        scale_per_vector: 8-bit dtypes only. True: each cached vector has its own float32 scale.
            False: one calibrated scale per head, whose size does not grow with the cache and is
            left out.
    """

    dtype: str = "bfloat16"
    scale_per_vector: bool = True

    def vector_bytes(self, width: int) -> int:
        """Bytes of one cached vector of `width` elements, its scale included."""
        element_bytes = DTYPE_BYTES[self.dtype]
        has_scale = element_bytes == 1 and self.scale_per_vector
        return width * element_bytes + (SCALE_BYTES if has_scale else 0)


@dataclass(frozen=True)
class Attention:
    """What one kind of attention caches per token.

    Attributes:
        kind: MHA, GQA, MQA or MLA.
        num_layers: Layers that own a cache.
        num_kv_heads: KV heads; 1 for MLA, whose query heads all read the same vector.
        vector_widths: Elements of each vector that a KV head caches per token: key and value, or
            MLA's single latent vector.
    """

    kind: str
    num_layers: int
    num_kv_heads: int
    vector_widths: tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """The numbers of a transformer that decide its cache.

    Attributes:
        num_layers: Decoder layers.
        num_heads: Query heads.
        num_kv_heads: KV heads, a divisor of `num_heads`.
        head_dim: Elements of a key.
        value_head_dim: Elements of a value; None means `head_dim`.
        latent_dim: `kv_lora_rank + qk_rope_head_dim` of a model with latent attention, else None.
        dtype: The dtype its weights are published in, if known.
        notes: What the figures assume or leave out, one sentence each.

    Raises:
        ValueError: `num_kv_heads` does not divide `num_heads`.
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_head_dim: int | None = None
    latent_dim: int | None = None
    dtype: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the heads."""
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"expected num_kv_heads to divide num_heads = {self.num_heads}, "
                f"got {self.num_kv_heads}"
            )

    def with_kv_heads(self, num_kv_heads: int) -> Attention:
        """This model's cache if it had `num_kv_heads` uncompressed KV heads."""
        kind = {self.num_heads: "MHA", 1: "MQA"}.get(num_kv_heads, "GQA")
        widths = (self.head_dim, self.value_head_dim or self.head_dim)
        return Attention(kind, self.num_layers, num_kv_heads, widths)

    def as_configured(self) -> Attention:
        """This model's cache as it is."""
        if self.latent_dim is not None:
            return Attention("MLA", self.num_layers, 1, (self.latent_dim,))
        return self.with_kv_heads(self.num_kv_heads)


# The example that textbooks show multi-query attention by.
TEXTBOOK = Model(num_layers=61, num_heads=128, num_kv_heads=128, head_dim=128)
TEXTBOOK_CONTEXT = 100_000


def token_bytes(attention: Attention, cache_format: CacheFormat) -> int:
    """Bytes that one token adds to the cache of one sequence.

    Example:
        >>> llama_3_8b = Model(num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128)
        >>> token_bytes(llama_3_8b.as_configured(), CacheFormat("bfloat16"))
        131072
    """
    head_bytes = sum(cache_format.vector_bytes(width) for width in attention.vector_widths)
    return attention.num_layers * attention.num_kv_heads * head_bytes


def cache_bytes(
    attention: Attention, cache_format: CacheFormat, *, context: int, batch: int = 1
) -> int:
    """Bytes of the caches of `batch` sequences with `context` tokens each."""
    return token_bytes(attention, cache_format) * context * batch


def max_context(attention: Attention, cache_format: CacheFormat, *, memory: int, batch: int) -> int:
    """The most tokens per sequence whose caches fit into `memory` bytes."""
    return memory // (token_bytes(attention, cache_format) * batch)


def max_batch(attention: Attention, cache_format: CacheFormat, *, memory: int, context: int) -> int:
    """The most sequences of `context` tokens whose caches fit into `memory` bytes."""
    return memory // (token_bytes(attention, cache_format) * context)


def variants(model: Model) -> list[Attention]:
    """MHA, a few GQA, MQA and the model as it is, from the largest cache to the smallest."""
    grouped = [model.num_heads // size for size in GROUP_SIZES if model.num_heads % size == 0]
    candidates = [model.with_kv_heads(n) for n in (model.num_heads, *grouped, 1)]
    unique = dict.fromkeys([*candidates, model.as_configured()])
    return sorted(unique, key=lambda a: a.num_kv_heads * sum(a.vector_widths), reverse=True)


@dataclass(frozen=True)
class Estimate:
    """One row of a comparison; bytes, tokens and sequences are exact.

    `max_context` (tokens per sequence, at the asked batch) and `max_batch` (sequences, at the
    asked context) are None if no memory was given.
    """

    attention: str
    num_kv_heads: int
    as_configured: bool
    token_bytes: int
    cache_bytes: int
    times_smaller_than_mha: float
    max_context: int | None
    max_batch: int | None


def compare(
    model: Model, cache_format: CacheFormat, *, context: int, batch: int, memory: int | None = None
) -> list[Estimate]:
    """Estimates the caches of all `variants` of a model.

    Args:
        model: The model.
        cache_format: How its cache is stored.
        context: Tokens per sequence.
        batch: Sequences.
        memory: Bytes that the cache may take, that is what the weights leave free.
    """
    mha_bytes = token_bytes(model.with_kv_heads(model.num_heads), cache_format)
    return [
        Estimate(
            attention=attention.kind,
            num_kv_heads=attention.num_kv_heads,
            as_configured=attention == model.as_configured(),
            token_bytes=token_bytes(attention, cache_format),
            cache_bytes=cache_bytes(attention, cache_format, context=context, batch=batch),
            times_smaller_than_mha=mha_bytes / token_bytes(attention, cache_format),
            max_context=memory and max_context(attention, cache_format, memory=memory, batch=batch),
            max_batch=memory and max_batch(attention, cache_format, memory=memory, context=context),
        )
        for attention in variants(model)
    ]
