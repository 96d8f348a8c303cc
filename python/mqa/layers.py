"""The layers of a decoder."""

from torch import Tensor, nn

from mqa.config import DecoderConfig
from mqa.norms import make_norm
from mqa.projection import Linear
from mqa.self_attention import Attention, NewTokens


def make_activation(config: DecoderConfig) -> nn.Module:
    """The non-linearity of the feed-forward network."""
    if config.activation == "silu":
        return nn.SiLU()
    return nn.GELU("tanh" if config.activation == "gelu_tanh" else "none")


class FeedForward(nn.Module):
    """Two projections and a non-linearity between them."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, config.mlp_bias)
        self.activation = make_activation(config)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, hidden_size]` to the same."""
        return self.down_proj(self.activation(self.up_proj(x)))


class GatedFeedForward(nn.Module):
    """SwiGLU and its relatives: a third projection is multiplied by the non-linear one."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, config.mlp_bias)
        self.activation = make_activation(config)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, hidden_size]` to the same."""
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


def make_feed_forward(config: DecoderConfig) -> nn.Module:
    """The feed-forward network of a layer."""
    return GatedFeedForward(config) if config.gated else FeedForward(config)


class SequentialLayer(nn.Module):
    """Attention, then the feed-forward network, each normalised before and added."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = make_norm(config, config.hidden_size)
        self.self_attn = Attention(config, layer)
        self.attention_output_norm = make_norm(config, config.hidden_size, config.output_norms)
        self.post_attention_layernorm = make_norm(config, config.hidden_size)
        self.mlp = make_feed_forward(config)
        self.mlp_output_norm = make_norm(config, config.hidden_size, config.output_norms)

    def forward(self, x: Tensor, new: NewTokens, cache: list[Tensor] | None) -> Tensor:
        """`[B, T, hidden_size]` to the same."""
        attended = self.self_attn(self.input_layernorm(x), new, cache)
        x = x + self.attention_output_norm(attended)
        return x + self.mlp_output_norm(self.mlp(self.post_attention_layernorm(x)))


class ParallelLayer(nn.Module):
    """Attention and the feed-forward network side by side, from the same input."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = make_norm(config, config.hidden_size)
        self.self_attn = Attention(config, layer)
        self.mlp_layernorm: nn.Module | None = None
        if config.block == "parallel":
            self.mlp_layernorm = make_norm(config, config.hidden_size)
        self.mlp = make_feed_forward(config)

    def forward(self, x: Tensor, new: NewTokens, cache: list[Tensor] | None) -> Tensor:
        """`[B, T, hidden_size]` to the same."""
        normed = self.input_layernorm(x)
        attended = self.self_attn(normed, new, cache)
        if self.mlp_layernorm is not None:
            normed = self.mlp_layernorm(x)
        return x + (self.mlp(normed) + attended)


def make_layer(config: DecoderConfig, layer: int) -> nn.Module:
    """Layer number `layer` of a decoder."""
    kind = SequentialLayer if config.block == "sequential" else ParallelLayer
    return kind(config, layer)
