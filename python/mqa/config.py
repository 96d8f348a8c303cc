"""Shape, constants and architecture of a decoder."""

from dataclasses import dataclass, fields
from typing import Any

CHOICES = {
    "positions": ("rotary", "learned"),
    "norm": ("rms", "rms_float32", "layer"),
    "block": ("sequential", "parallel", "parallel_shared_norm"),
    "activation": ("silu", "gelu", "gelu_tanh"),
    "attention_impl": ("mqa", "torch"),
}


def check_numbers(config: "RopeScaling | DecoderConfig") -> None:
    """Raise a ValueError for a number that is not positive, or not a number."""
    numbers: dict[Any, Any] = {
        int: int,
        float: int | float,
        int | None: int | None,
        float | None: int | float | None,
    }
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type not in numbers:
            continue
        if not isinstance(value, numbers[field.type]) or not (value is None or value > 0):
            kind = type(config).__name__
            raise ValueError(f"{kind}: expected {field.name} > 0, got {value!r}")


@dataclass(frozen=True)
class RopeScaling:
    """Stretching of rotary frequencies beyond the context of pre-training.

    Linear, by `factor` alone; or that of LLaMA 3, if the other three are given, which leaves fast
    frequencies as they are.
    """

    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position: int | None = None

    def __post_init__(self) -> None:
        check_numbers(self)
        llama3 = (self.low_freq_factor, self.high_freq_factor, self.original_max_position)
        if None in llama3 and any(number is not None for number in llama3):
            raise ValueError(
                "RopeScaling: expected all or none of low_freq_factor, high_freq_factor and "
                f"original_max_position, got {llama3}"
            )


@dataclass(frozen=True)
class DecoderConfig:
    """Shape, constants and architecture of a `Decoder`; the defaults are LLaMA's.

    Attributes:
        positions: how a token knows its place: "rotary" embedding of queries and keys, or a
            "learned" vector added to the token's.
        local_rope_theta: base of the rotary embedding in layers with a window, unscaled; None takes
            that of the other layers.
        norm: "rms", "rms_float32" (whose weights are loaded in float32 for any dtype) or "layer"
            (LayerNorm).
        rms_norm_eps: epsilon of any of these norms.
        qk_norm: normalise each head of queries and keys, before the rotary embedding.
        output_norms: normalise what attention and feed-forward network add as well.
        block: "sequential", or "parallel": attention and feed-forward network read the same input,
            each through a norm of its own or, "parallel_shared_norm", through the same.
        gated: whether the feed-forward network is `down(activation(gate(x)) * up(x))`, or else
            `down(activation(up(x)))`.
        activation: "silu", "gelu" or "gelu_tanh" (its approximation by tanh).
        qkv_bias, output_bias, mlp_bias: biases of the projections into and out of attention, and
            of the feed-forward network.
        windows: for each layer, how many keys a token sees, its own and those before it; 0 is all.
            Empty: all in every layer.
        attention_scale: factor of the scores, by default `1 / sqrt(head_dim)`.
        attention_softcap, logit_softcap: replace a score, or a logit, x by `cap * tanh(x / cap)`.
        embedding_scale: factor of the token embeddings, rounded to their dtype.

    Raises:
        ValueError: a number is not positive, `num_kv_heads` does not divide `num_heads`, `head_dim`
            is odd (rotary embedding turns pairs), `windows` has not one for each layer, or a name
            is unknown.
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
    positions: str = "rotary"
    local_rope_theta: float | None = None
    norm: str = "rms"
    qk_norm: bool = False
    output_norms: bool = False
    block: str = "sequential"
    gated: bool = True
    activation: str = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    windows: tuple[int, ...] = ()
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"DecoderConfig: expected num_kv_heads to divide num_heads = {self.num_heads}, "
                f"got {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"DecoderConfig: expected an even head_dim, got {self.head_dim}")
        if len(self.windows) not in (0, self.num_layers) or any(w < 0 for w in self.windows):
            raise ValueError(
                f"DecoderConfig: expected windows to be empty or {self.num_layers} numbers >= 0, "
                f"one for each layer, got {self.windows}"
            )
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(
                    f"DecoderConfig: expected {name} to be one of {choices}, got {value!r}"
                )
        if self.output_norms and self.block != "sequential":
            raise ValueError(
                f"DecoderConfig: expected block 'sequential' with output_norms, got {self.block!r}"
            )

    @property
    def scale(self) -> float:
        """The factor of the scores."""
        return float(self.attention_scale or self.head_dim**-0.5)

    def window(self, layer: int) -> int:
        """How many keys a token sees in `layer`; 0 is all."""
        return self.windows[layer] if self.windows else 0

    @property
    def rotaries(self) -> list[tuple[float, RopeScaling | None]]:
        """Base and scaling of every rotary embedding in use."""
        if self.positions != "rotary":
            return []
        everywhere = [(self.rope_theta, self.rope_scaling)]
        return everywhere + ([(self.local_rope_theta, None)] if self.local_rope_theta else [])

    def rotation(self, layer: int) -> int:
        """Which of `rotaries` is that of `layer`; -1 is none."""
        is_local = self.window(layer) > 0 and self.local_rope_theta is not None
        return -1 if self.positions != "rotary" else int(is_local)
