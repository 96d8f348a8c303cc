"""Shape and constants of a decoder."""

from dataclasses import dataclass, fields
from typing import Any

ATTENTION_IMPLS = ("mqa", "torch")


def check_numbers(config: "RopeScaling | DecoderConfig") -> None:
    """Raise a ValueError for a number that is not positive, or not a number."""
    numbers: dict[Any, Any] = {int: int, float: int | float}
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type in numbers and not (isinstance(value, numbers[field.type]) and value > 0):
            kind = type(config).__name__
            raise ValueError(f"{kind}: expected {field.name} > 0, got {value!r}")


@dataclass(frozen=True)
class RopeScaling:
    """LLaMA 3's stretching of rotary frequencies beyond the context of pre-training."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int

    def __post_init__(self) -> None:
        check_numbers(self)


@dataclass(frozen=True)
class DecoderConfig:
    """Shape and constants of a `Decoder`.

    Raises:
        ValueError: a number is not positive, `num_kv_heads` does not divide `num_heads`, `head_dim`
            is odd (rotary embedding turns pairs), or `attention_impl` is unknown.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-5
    tie_embeddings: bool = False
    attention_impl: str = "mqa"
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"DecoderConfig: expected num_kv_heads to divide num_heads = {self.num_heads}, "
                f"got {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"DecoderConfig: expected an even head_dim, got {self.head_dim}")
        if self.attention_impl not in ATTENTION_IMPLS:
            raise ValueError(
                f"DecoderConfig: expected attention_impl to be one of {ATTENTION_IMPLS}, "
                f"got {self.attention_impl!r}"
            )
