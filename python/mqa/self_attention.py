"""Self-attention of a decoder's layer."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mqa.config import DecoderConfig
from mqa.norms import make_norm
from mqa.positions import rotate
from mqa.projection import Linear


class NewTokens(NamedTuple):
    """What every layer needs to know about the tokens of this call."""

    positions: Tensor  # [B] slot of each row's first new token
    slots: Tensor  # [B, T] slot of every new token
    seq_lens: Tensor  # [B] filled slots of each row, these tokens included
    rotations: list[tuple[Tensor, Tensor]]  # of each rotary embedding, see `rotate`
    visible: Tensor | None  # [B, 1, T, S] slots that a token sees; for attend_torch only


class Attention(nn.Module):
    """Self-attention of one layer over its two cache tensors."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.attention_impl = config.attention_impl
        self.scale = config.scale
        self.softcap = float(config.attention_softcap or 0)
        self.window = config.window(layer)
        self.rotation = config.rotation(layer)
        self.key_index, self.value_index = 2 * layer, 2 * layer + 1
        self.scales_offset = 2 * config.num_layers

        query_size = config.num_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, query_size, config.qkv_bias)
        self.k_proj = Linear(config.hidden_size, kv_size, config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, kv_size, config.qkv_bias)
        self.o_proj = Linear(query_size, config.hidden_size, config.output_bias)
        self.q_norm = make_norm(config, config.head_dim, config.qk_norm)
        self.k_norm = make_norm(config, config.head_dim, config.qk_norm)

    def forward(self, x: Tensor, new: NewTokens, cache: list[Tensor] | None) -> Tensor:
        """Add the tokens `x [B, T, hidden_size]` to any `cache`, and attend from them to all."""
        query = self.q_norm(self.split_heads(self.q_proj(x)))
        key = self.k_norm(self.split_heads(self.k_proj(x)))
        value = self.split_heads(self.v_proj(x))
        if self.rotation >= 0:
            cos, sin = new.rotations[self.rotation]
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if cache is None:
            out = self.attend_uncached(query, key, value)
        elif self.attention_impl == "mqa":
            out = self.attend_mqa(query, key, value, new, cache)
        else:
            out = self.attend_torch(query, key, value, new, cache)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def split_heads(self, x: Tensor) -> Tensor:
        """`[B, T, H * D]` to `[B, H, T, D]`."""
        return x.view(x.size(0), x.size(1), -1, self.head_dim).transpose(1, 2)

    def attend_uncached(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Whole sequences, by either attention; this alone has a backward."""
        if self.attention_impl == "mqa":
            return self.attend(query, key, value, None, None, None)
        if self.window == 0 and self.softcap == 0:
            return nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=self.scale, enable_gqa=True
            )
        slots = torch.arange(query.size(2), device=query.device)
        return self.attend_masked(query, key, value, slots <= slots[:, None], slots[:, None])

    def attend_mqa(
        self, query: Tensor, key: Tensor, value: Tensor, new: NewTokens, cache: list[Tensor]
    ) -> Tensor:
        """Append to the preallocated cache in place, then attend to its valid slots."""
        keys, values = cache[self.key_index], cache[self.value_index]
        key_scale: Tensor | None = None
        value_scale: Tensor | None = None
        if len(cache) > self.scales_offset:
            key_scale = cache[self.scales_offset + self.key_index]
            value_scale = cache[self.scales_offset + self.value_index]
        torch.ops.mqa.kv_append(
            keys,
            values,
            key,
            value,
            new.positions,
            key_scale=key_scale,
            value_scale=value_scale,
        )
        return self.attend(query, keys, values, new.seq_lens, key_scale, value_scale)

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        seq_lens: Tensor | None,
        key_scale: Tensor | None,
        value_scale: Tensor | None,
    ) -> Tensor:
        """The operator with what this layer asks of it."""
        return torch.ops.mqa.attention(
            query,
            keys,
            values,
            is_causal=True,
            scale=self.scale,
            seq_lens=seq_lens,
            window_left=self.window - 1,
            softcap=self.softcap,
            key_scale=key_scale,
            value_scale=value_scale,
        )

    def attend_torch(
        self, query: Tensor, key: Tensor, value: Tensor, new: NewTokens, cache: list[Tensor]
    ) -> Tensor:
        """Plain PyTorch: replace the cache tensors by larger ones and mask what is hidden."""
        visible = new.visible
        assert visible is not None
        keys = grow(cache[self.key_index], key, new.slots, visible.size(3))
        values = grow(cache[self.value_index], value, new.slots, visible.size(3))
        cache[self.key_index], cache[self.value_index] = keys, values
        return self.attend_masked(query, keys, values, visible, new.slots[:, None, :, None])

    def attend_masked(
        self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor, slots: Tensor
    ) -> Tensor:
        """Plain PyTorch: attend to what is `visible [..., T, S]` and in `slots`' windows."""
        if self.window > 0:
            others = torch.arange(key.size(2), device=key.device)
            visible = visible & (others > slots - self.window)
        if self.softcap == 0:
            return nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=visible, scale=self.scale, enable_gqa=True
            )
        group = query.size(1) // key.size(1)
        keys, values = (x.repeat_interleave(group, 1).float() for x in (key, value))
        scores = query.float() @ keys.transpose(2, 3) * self.scale
        scores = torch.tanh(scores / self.softcap) * self.softcap
        weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
        return (weights @ values).type_as(query)


def grow(cache: Tensor, new: Tensor, slots: Tensor, size: int) -> Tensor:
    """A copy of `cache`, enlarged to `size` slots, with `new [B, H_kv, T, D]` at `slots [B, T]`.

    This is the `torch.cat` of a plain PyTorch decoder, for rows that may differ in length.
    """
    room = new.new_zeros([new.size(0), new.size(1), size - cache.size(2), new.size(3)])
    index = slots[:, None, :, None].expand_as(new)
    return torch.cat([cache, room], 2).scatter_(2, index, new)
