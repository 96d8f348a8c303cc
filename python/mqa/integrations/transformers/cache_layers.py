"""What a layer of the cache has in common with others, and the layer that keeps every token."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from mqa.integrations.transformers.cache_slots import (
    TokenCount,
    append,
    new_slots,
    select,
    select_rows,
    tensors_of,
)


class SlotsLayer(CacheLayerMixin):
    """A layer with a fixed number of slots, allocated once and written in place.

    Attributes:
        keys: `[B, H_kv, num_slots, D]`, allocated with the first keys that come.
        values: `[B, H_kv, num_slots, D_v]`.
        num_slots: what is allocated for a sequence.
        count: the tokens seen.
        batch_size: B, once allocated.
    """

    is_compileable = True
    is_croppable = True
    is_sliding = False
    keys: Tensor
    values: Tensor
    batch_size: int

    def __init__(self, num_slots: int, max_cache_len: int, dtype: torch.dtype | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_slots = num_slots
        self.count = TokenCount(max_cache_len)
        self._dtype = dtype

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates for the batch, heads, dtype and device of these states."""
        dtype = self._dtype or key_states.dtype
        self.batch_size = key_states.shape[0]
        self.keys = new_slots(key_states, self.num_slots, dtype)
        self.values = new_slots(value_states, self.num_slots, dtype)
        self.count.tensor = self.count.tensor.to(key_states.device)
        if not torch.compiler.is_compiling():  # CUDA graphs need to know that these stay in place
            for tensor in (*self._tensors(), self.count.tensor):
                torch._dynamo.mark_static_address(tensor)
        self.is_initialized = True

    def _prepare(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates if that is still to be done, and refuses what doesn't fit."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        batch, _, num_tokens, _ = key_states.shape
        if batch != self.batch_size:
            raise ValueError(
                f"MQACache: expected a batch of {self.batch_size}, for which its memory was "
                f"allocated, got {batch}"
            )
        self.count.check_room(num_tokens)

    def _tensors(self) -> list[Tensor]:
        return [*tensors_of(self.keys), *tensors_of(self.values)]

    @property
    def nbytes(self) -> int:
        """Memory of the keys, the values and their scales."""
        return sum(t.nbytes for t in self._tensors()) if self.is_initialized else 0

    def get_seq_length(self) -> int | Tensor:  # type: ignore[override]  # like StaticLayer's
        """The tokens seen: a number, in compiled code a tensor."""
        return self.count.traceable if self.is_initialized else 0

    def get_max_length(self) -> int:
        """The most tokens that a sequence may have."""
        return self.count.limit

    def reset(self) -> None:
        """Forgets all tokens; the memory stays where it is."""
        self.count.clear()
        if self.is_initialized:
            for tensor in self._tensors():
                tensor.zero_()

    def check_crop(self, tokens_to_remove: int) -> None:
        """Refuses what `crop` cannot do.

        Raises:
            ValueError: there aren't as many tokens, or what preceded them is lost.
        """
        if not 0 <= -tokens_to_remove <= self.count.number:
            raise ValueError(
                f"MQACache.crop: expected minus the number of tokens to remove, of the "
                f"{self.count.number} in the cache, got {tokens_to_remove}"
            )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row b becomes what row `beam_idx[b]` was, in place."""
        if not self.is_initialized:
            return
        for tensor in self._tensors():
            filled = tensor[:, :, : self.count.number]
            filled.copy_(select(filled, 0, beam_idx.to(filled.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times, in new memory."""
        if self.is_initialized:
            rows = torch.arange(self.batch_size, device=self.keys.device)
            self._select_rows(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """The given rows (numbers, or a bool for each row), in new memory."""
        if self.is_initialized:
            rows = torch.arange(self.batch_size, device=self.keys.device)
            self._select_rows(rows[indices.to(rows.device)])

    def _select_rows(self, rows: Tensor) -> None:
        self.keys = select_rows(self.keys, rows)
        self.values = select_rows(self.values, rows)
        self.batch_size = len(rows)


class FullLayer(SlotsLayer):
    """A layer that keeps every token: slot j holds position j.

    Args:
        max_cache_len: the most tokens that a sequence may have.
        dtype: of the slots, None for that of the first keys.
        is_sliding: whether the model attends to a window here (that is never full).
    """

    def __init__(self, max_cache_len: int, dtype: torch.dtype | None, is_sliding: bool) -> None:
        super().__init__(max_cache_len, max_cache_len, dtype)
        self.is_sliding = is_sliding

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends the states; returns all slots."""
        self._prepare(key_states, value_states)
        append(self.keys, self.values, key_states, value_states, self.count.tensor)
        self.count.advance(key_states.shape[2])
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The number of slots returned by `update`, and the position of the first."""
        self.count.check_room(query_length)
        return self.num_slots, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last `-tokens_to_remove` tokens; `check_crop` comes first."""
        self.count.advance(tokens_to_remove)
