"""Slots for keys and values, and the count of those in use."""

import torch
from torch import Tensor

EIGHT_BIT = (torch.int8, torch.float8_e4m3fn)


class TokenCount:
    """How many tokens a layer has seen.

    A tensor counts for the ops, so that a compiled step neither waits for the device nor depends on
    a Python number; Python's own copy is kept where it is known without asking the device.

    Attributes:
        tensor: int64, no dimensions.
        limit: the most tokens that a sequence may have.
    """

    def __init__(self, limit: int) -> None:
        self.tensor = torch.tensor(0)
        self.limit = limit
        self._number: int | None = 0

    @property
    def number(self) -> int:
        """The count as a Python number."""
        if self._number is None:
            self._number = int(self.tensor)
        return self._number

    @property
    def traceable(self) -> int | Tensor:
        """The count as compiled code can take it: a number outside of it, a tensor inside."""
        return self.tensor if torch.compiler.is_compiling() else self.number

    def check_room(self, num_tokens: int) -> None:
        """Refuses tokens beyond the limit; compiled code cannot ask.

        Raises:
            ValueError: there is no room for `num_tokens` more.
        """
        if torch.compiler.is_compiling() or self.number + num_tokens <= self.limit:
            return
        raise ValueError(
            f"MQACache is full: expected at most {self.limit} tokens in a sequence "
            f"(max_cache_len), got {self.number} in the cache and {num_tokens} new"
        )

    def advance(self, num_tokens: int) -> None:
        """Counts `num_tokens` more (fewer, if negative)."""
        compiling = torch.compiler.is_compiling()
        number = None if compiling or self._number is None else self._number + num_tokens
        self.tensor.add_(num_tokens)
        self._number = number

    def clear(self) -> None:
        """Starts again at 0."""
        self.tensor.zero_()
        self._number = 0


def new_slots(like: Tensor, num_slots: int, dtype: torch.dtype) -> Tensor:
    """Zeros `[B, H_kv, num_slots, D]` for rows like those of `like`.

    An 8-bit tensor carries its scales, float32 `[B, H_kv, num_slots]`, as attribute `mqa_scale`.
    """
    B, H_kv, _, D = like.shape
    slots = like.new_zeros((B, H_kv, num_slots, D), dtype=dtype)
    if dtype in EIGHT_BIT:
        set_scale(slots, like.new_zeros((B, H_kv, num_slots), dtype=torch.float32))
    return slots


def scale_of(slots: Tensor) -> Tensor | None:
    """The scales of 8-bit slots, None for others."""
    return getattr(slots, "mqa_scale", None)


def set_scale(slots: Tensor, scale: Tensor) -> None:
    """Attaches scales to 8-bit slots."""
    slots.mqa_scale = scale  # type: ignore[attr-defined]


def tensors_of(slots: Tensor) -> list[Tensor]:
    """The slots, and their scales if they have any: everything with a row per token."""
    scale = scale_of(slots)
    return [slots] if scale is None else [slots, scale]


def append(
    keys: Tensor,
    values: Tensor,
    new_keys: Tensor,
    new_values: Tensor,
    position: Tensor,
    block_table: Tensor | None = None,
) -> None:
    """Writes new rows, and their scales, at `position` (the same in every sequence)."""
    torch.ops.mqa.kv_append(
        keys,
        values,
        new_keys,
        new_values,
        position.expand(new_keys.shape[0]),
        block_table=block_table,
        key_scale=scale_of(keys),
        value_scale=scale_of(values),
    )


def select(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    """`index_select` that takes 8-bit floats on any device."""
    bits = tensor.view(torch.int8) if tensor.dtype in EIGHT_BIT else tensor
    return bits.index_select(dim, index).view(tensor.dtype)


def select_rows(slots: Tensor, rows: Tensor) -> Tensor:
    """A copy of the given sequences, with their scales."""
    selected = select(slots, 0, rows)
    scale = scale_of(slots)
    if scale is not None:
        set_scale(selected, select(scale, 0, rows))
    return selected
