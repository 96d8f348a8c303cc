"""Normalisation of a decoder's hidden states."""

from torch import Tensor, nn

from mqa.config import DecoderConfig


class Float32RMSNorm(nn.RMSNorm):
    """RMS norm in float32 throughout, weights included; only the result is rounded."""

    def forward(self, x: Tensor) -> Tensor:
        """`[..., size]` to the same."""
        weight = self.weight.float()
        return nn.functional.rms_norm(x.float(), self.normalized_shape, weight, self.eps).type_as(x)


NORMS = {"rms": nn.RMSNorm, "rms_float32": Float32RMSNorm, "layer": nn.LayerNorm}


def make_norm(config: DecoderConfig, size: int, is_wanted: bool = True) -> nn.Module:
    """A norm over the last dimension of `[..., size]`; the identity where none is wanted."""
    if not is_wanted:
        return nn.Identity()
    return NORMS[config.norm](size, config.rms_norm_eps)
