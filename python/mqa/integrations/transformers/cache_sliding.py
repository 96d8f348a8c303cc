"""The layer that keeps the tokens of its window only."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from mqa.integrations.transformers.cache_layers import SlotsLayer
from mqa.integrations.transformers.cache_slots import (
    EIGHT_BIT,
    append,
    new_slots,
    select,
    tensors_of,
)

ATTENTION = "mqa"


class SlidingLayer(SlotsLayer):
    """A ring of `window` slots: position p lies in slot `p % window`, over position `p - window`.

    With the attention implementation "mqa" a single new token attends to the ring as it lies: it
    sees all that is there, in whatever order, and only a mask has to know which slot is which
    (`get_mask_sizes`). More tokens at once see different keys, some of which they overwrite in the
    ring; these and other implementations get a copy in the order of positions.

    While recording (`activate_past_recording`, as assisted decoding does) the tokens of a forward
    reach the ring only when `crop` has said which of them stay.

    Args:
        window: how many tokens a token sees, itself included; less than max_cache_len.
        max_cache_len: the most tokens that a sequence may have.
        dtype: of the slots, None for that of the first keys.
        config: of the decoder; says which attention implementation reads the slots.
    """

    is_sliding = True

    def __init__(
        self, window: int, max_cache_len: int, dtype: torch.dtype | None, config: PreTrainedConfig
    ) -> None:
        super().__init__(window, max_cache_len, dtype)
        self.record_past = False
        self._config = config
        self._is_empty = True
        self._pending: tuple[Tensor, Tensor] | None = None
        self._block_table: Tensor

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates for the batch, heads, dtype and device of these states."""
        super().lazy_initialization(key_states, value_states)
        self._set_block_table()

    def _set_block_table(self) -> None:
        # For kv_append: after the last slot of a row comes its first one again.
        rows = torch.arange(self.batch_size, dtype=torch.int32, device=self.keys.device)
        self._block_table = rows[:, None].repeat(1, 2)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends the states; returns slots with all that the new tokens may see."""
        self._prepare(key_states, value_states)
        num_tokens = key_states.shape[2]
        self._commit()
        if self._attends_to_ring(num_tokens):
            self._write(key_states, value_states, self.count.tensor)
            visible = self.keys, self.values
        else:
            visible = self._in_order(key_states, value_states)
            if self.record_past:
                self._pending = key_states, value_states
            else:
                self._write(key_states, value_states, self.count.tensor)
        self.count.advance(num_tokens)
        self._is_empty = False
        return visible

    def _attends_to_ring(self, num_tokens: int) -> bool:
        # The recorded token isn't in the ring yet.
        uses_mqa = self._config._attn_implementation == ATTENTION
        return num_tokens == 1 and uses_mqa and not self.record_past

    def _num_past(self) -> int:
        return 0 if self._is_empty else self.num_slots - 1

    def _in_order(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        num_past = self._num_past()
        if num_past == 0 and self._dtype not in EIGHT_BIT:
            return key_states, value_states
        # Slots for a full past and the new tokens; with less of a past, those at the end are spare.
        first = (self.count.tensor - num_past).clamp(min=0)
        past = (first + torch.arange(num_past, device=first.device)) % self.num_slots
        keys, values = (
            self._with_past(ring, past, key_states.shape[2]) for ring in (self.keys, self.values)
        )
        append(keys, values, key_states, value_states, self.count.tensor - first)
        return keys, values

    def _with_past(self, ring: Tensor, past: Tensor, num_tokens: int) -> Tensor:
        slots = new_slots(ring, len(past) + num_tokens, ring.dtype)
        for target, source in zip(tensors_of(slots), tensors_of(ring), strict=True):
            target[:, :, : len(past)] = select(source, 2, past)
        return slots

    def _write(self, key_states: Tensor, value_states: Tensor, position: Tensor) -> None:
        skipped = max(key_states.shape[2] - self.num_slots, 0)
        append(
            self.keys,
            self.values,
            key_states[:, :, skipped:],
            value_states[:, :, skipped:],
            (position + skipped) % self.num_slots,
            self._block_table,
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int | Tensor]:  # type: ignore[override]
        """How many slots `update` returns, and what to add to a slot's number to get its position.

        The latter is one number, for the ring int64 `[window]`. A slot that is not filled yet has
        the position that will be the first in it.
        """
        self.count.check_room(query_length)
        if self._attends_to_ring(query_length):
            return self.num_slots, 0 if self._is_empty else self._rounds() * self.num_slots
        num_past = self._num_past()
        first = self.count.traceable - num_past
        first = first.clamp(min=0) if isinstance(first, Tensor) else max(first, 0)
        return num_past + query_length, first

    def _rounds(self) -> Tensor:
        """How often the ring has come past each slot, up to and including the next token."""
        slots = torch.arange(self.num_slots, device=self.count.tensor.device)
        return ((self.count.tensor - slots) // self.num_slots).clamp(min=0)

    def activate_past_recording(self) -> None:
        """From now on `crop` can take back all tokens of the last forward."""
        self.record_past = True

    def check_crop(self, tokens_to_remove: int) -> None:
        """Refuses what `crop` cannot do.

        Raises:
            ValueError: there aren't as many tokens, or what preceded them is lost.
        """
        super().check_crop(tokens_to_remove)
        num_pending = self._num_pending()
        was_full = self.count.number - num_pending > self.num_slots
        if was_full and -tokens_to_remove > num_pending:
            raise ValueError(
                f"MQACache.crop: expected at most {num_pending} tokens to remove, those recorded "
                f"in the last forward (activate_past_recording() before it), as older ones have "
                f"pushed others out of the window of {self.num_slots}, got {tokens_to_remove}"
            )

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last `-tokens_to_remove` tokens; `check_crop` comes first."""
        self.count.advance(tokens_to_remove)
        self._commit(-tokens_to_remove)

    def _num_pending(self) -> int:
        return 0 if self._pending is None else self._pending[0].shape[2]

    def _commit(self, num_removed: int = 0) -> None:
        """Brings the pending tokens, save the last `num_removed`, into the ring."""
        if self._pending is None:
            return
        num_kept = max(self._num_pending() - num_removed, 0)
        keys, values = (states[:, :, :num_kept] for states in self._pending)
        self._pending = None
        self._write(keys, values, self.count.tensor - num_kept)

    def reset(self) -> None:
        """Forgets all tokens; the memory stays where it is."""
        super().reset()
        self.record_past = False
        self._is_empty = True
        self._pending = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row b becomes what row `beam_idx[b]` was, in place."""
        self._commit()
        super().reorder_cache(beam_idx)

    def _select_rows(self, rows: Tensor) -> None:
        self._commit()
        super()._select_rows(rows)
        self._set_block_table()
