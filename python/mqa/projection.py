"""Matrix products with weights."""

import torch
from torch import Tensor, nn

from mqa.ops import cpu_isa

_HAS_AMX = cpu_isa() == "amx"


class Linear(nn.Linear):
    """`nn.Linear` by `project`, without bias unless asked for."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias)
        self.row_by_row = False

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        return project(x, self.weight, self.bias, self.row_by_row)


def project(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, row_by_row: bool = False
) -> Tensor:
    """`x [..., in_features] @ weight.T + bias`.

    With `row_by_row`, every row has the bits that it has alone; a matrix product may depend on how
    many rows there are.
    """
    if not row_by_row or x.numel() == x.size(-1):
        return project_together(x, weight, bias)
    rows = x.reshape(-1, x.size(-1)).split(1)
    return torch.cat([project_together(row, weight, bias) for row in rows]).view(
        x.shape[:-1] + weight.shape[:1]
    )


def project_together(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`project` by one call.

    With AMX `linear` rearranges bfloat16 weights on every call, which a single row does not repay:
    matrix times vector takes 0.5 to 0.9 of its time. Other dtypes gain nothing, or lose, and so do
    machines without AMX: with AVX512-BF16 it takes 1.0 to 2.2 times as long.
    """
    is_vector = x.dtype == torch.bfloat16 and x.numel() == weight.size(1) and bias is None
    if is_vector and _has_amx():
        out = torch.mv(weight, x.flatten())
        return out.view(x.shape[:-1] + out.shape)
    return nn.functional.linear(x, weight, bias)


def _has_amx() -> bool:
    if torch.jit.is_scripting():  # where globals are not to be had
        return bool(torch.ops.mqa.cpu_isa() == "amx")
    return _HAS_AMX
