"""Attention calls to test with.

What must not be read into a result holds `poison`: cache slots beyond `seq_lens` (their scales and
float masks too), pages that no table names, the gaps of strided tensors.
"""

from typing import Any

import torch
from torch import Tensor

import oracle

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
QUANTISED = list(oracle.QUANTISED_MAX)


class Case(dict[str, Any]):
    """The arguments of `mqa.attention` by name."""

    def __repr__(self) -> str:
        def describe(x: Any) -> str:
            if not isinstance(x, Tensor):
                return repr(x)
            return (
                f"{x.dtype}{list(x.shape)}/{x.stride()}"
                if x.dim() > 1
                else f"{x.dtype}{x.tolist()}"
            )

        return "Case(" + ", ".join(f"{name}={describe(x)}" for name, x in self.items()) + ")"

    def tensors(self) -> dict[str, Tensor]:
        return {name: x for name, x in self.items() if isinstance(x, Tensor)}

    def but(self, **changes: Any) -> "Case":
        return Case({**self, **changes})


def poison(dtype: torch.dtype) -> Tensor:
    """A value that spoils every result it gets into."""
    if dtype == torch.bool:
        return torch.tensor(True)
    worst = torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max
    return torch.tensor(worst).to(dtype)


def poisoned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return poison(dtype).repeat(shape)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equality that tells one NaN or zero from another."""
    if a.dtype != b.dtype:
        return False
    copies = (torch.atleast_1d(x).clone(memory_format=torch.contiguous_format) for x in (a, b))
    return torch.equal(*(x.view(torch.uint8) for x in copies))


def build(
    *,
    B: int = 2,
    H_kv: int = 2,
    G: int = 3,
    T: int = 1,
    S: int = 17,
    D: int = 16,
    D_v: int | None = None,
    dtype: torch.dtype = torch.float32,
    seq_lens: list[int] | None = None,
    **options: Any,
) -> Case:
    """A call with random query, key and value."""
    case = Case(
        query=torch.randn(B, H_kv * G, T, D).to(dtype),
        key=torch.randn(B, H_kv, S, D).to(dtype),
        value=torch.randn(B, H_kv, S, D if D_v is None else D_v).to(dtype),
        **options,
    )
    if seq_lens is None:
        return case
    return fill_unused(case.but(seq_lens=torch.tensor(seq_lens, dtype=torch.int32)))


def fill_unused(case: Case, fill: float = torch.nan) -> Case:
    """Puts `fill` beyond `seq_lens` into a dense float cache and into a float mask."""
    unused = torch.arange(case["key"].size(2)) >= case["seq_lens"].view(-1, 1, 1)
    filled = {name: case[name].masked_fill(unused.unsqueeze(-1), fill) for name in ("key", "value")}
    mask = case.get("attn_mask")
    if mask is not None and mask.dtype != torch.bool and mask.size(-1) == unused.size(-1):
        filled["attn_mask"] = mask.masked_fill(unused.all(0), fill)
    return case.but(**filled)


def quantised(case: Case, dtype: torch.dtype, *, per_head: bool = False) -> Case:
    """The same call over an 8-bit cache, NaN slots poisoned."""
    changes = {}
    for name in ("key", "value"):
        x = case[name].float()
        given = torch.rand(x.size(1)) * 0.02 + 0.01 if per_head else None
        codes, scale = oracle.quantise(
            x.nan_to_num(0), dtype, None if given is None else given.view(-1, 1)
        )
        changes[name] = torch.where(x.isnan(), poison(dtype), codes)
        unused = x.isnan().any(-1)
        changes[name + "_scale"] = scale.masked_fill(unused, torch.nan) if given is None else given
    return case.but(**changes)


def random_mask(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    hidden = torch.rand(shape) < 0.3
    return (
        ~hidden
        if dtype == torch.bool
        else torch.randn(shape).masked_fill(hidden, -torch.inf).to(dtype)
    )
