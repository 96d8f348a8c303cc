"""How a decoder's tokens know their place: the rotary embedding, or learned vectors."""

import math

import torch
from torch import Tensor, nn

from mqa.config import RopeScaling


class RotaryEmbedding(nn.Module):
    """Angles of the rotary embedding, computed on the fly.

    There is no table, so there is no buffer that `model.to(torch.bfloat16)` could round.
    """

    def __init__(self, head_dim: int, theta: float, scaling: RopeScaling | None) -> None:
        super().__init__()
        scaling = scaling or RopeScaling(1.0)
        self.head_dim = head_dim
        self.theta = float(theta)
        self.factor = float(scaling.factor)
        self.is_linear = scaling.original_max_position is None
        self.low_freq_factor = float(scaling.low_freq_factor or 1.0)
        self.high_freq_factor = float(scaling.high_freq_factor or 2.0)
        self.original_max_position = scaling.original_max_position or 1

    def forward(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Factors for `rotate`, float32 `[B, 1, T, D]`, for `slots [B, T]`."""
        exponents = torch.arange(0, self.head_dim, 2, device=slots.device).float() / self.head_dim
        frequencies = 1.0 / torch.pow(self.theta, exponents)
        if self.factor != 1.0:
            frequencies = self.stretch(frequencies)
        angles = (slots.unsqueeze(-1).float() * frequencies).unsqueeze(1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)

    def stretch(self, frequencies: Tensor) -> Tensor:
        """`RopeScaling` of `frequencies`."""
        if self.is_linear:
            return frequencies / self.factor
        # Fast frequencies stay, slow ones are divided by `factor`, a ramp lies between.
        turns = frequencies * (self.original_max_position / (2 * math.pi))
        ramp = self.high_freq_factor - self.low_freq_factor
        kept = ((turns - self.low_freq_factor) / ramp).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs `(x[i], x[i + D / 2])` of `x [B, H, T, D]` by their angles, in float32.

    `cos` and `sin` have a factor for each element: the sine of a pair's first one is negated.
    """
    exact = x.float()
    partners = exact.roll(x.size(-1) // 2, -1)
    return torch.addcmul(exact * cos, partners, sin).type_as(x)


class LearnedPositions(nn.Module):
    """Adds to every token a vector for its slot."""

    def __init__(self, max_position: int, hidden_size: int) -> None:
        super().__init__()
        self.max_position = max_position
        self.weight = nn.Parameter(torch.empty(max_position, hidden_size))
        nn.init.normal_(self.weight)

    def forward(self, x: Tensor, slots: Tensor) -> Tensor:
        """`x [B, T, hidden_size]` and its `slots [B, T]` to the shape of x."""
        known = (slots < self.max_position).all()
        if torch.compiler.is_compiling():  # a graph cannot branch on what a tensor holds
            torch._assert_async(known, "Decoder: expected positions below max_position")
        elif not bool(known):
            raise ValueError(
                f"Decoder: expected positions below {self.max_position} (max_position), "
                f"got {int(slots.max())}"
            )
        return x + nn.functional.embedding(slots, self.weight)
