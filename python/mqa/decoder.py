"""The reference decoder: a LLaMA-family transformer with `num_kv_heads` as its switch.

`num_kv_heads == num_heads` is multi-head attention, 1 is multi-query attention, anything between
is grouped-query attention. Every method works eagerly and under `torch.jit.script`.

Letters: `B` sequences, `T` new tokens, `S` cache slots, `H_q`/`H_kv` query/KV heads, `D` head_dim.
Token number p of a sequence lives in slot p of its row of every cache tensor. A cache is the flat
list `[key_0, value_0, key_1, value_1, ...]` over the layers, each `[B, H_kv, S, D]`. Without
one, for training, the new tokens are whole sequences.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mqa.config import DecoderConfig, RopeScaling


class NewTokens(NamedTuple):
    """What every layer needs to know about the tokens of this call."""

    positions: Tensor  # [B] slot of each row's first new token
    slots: Tensor  # [B, T] slot of every new token
    seq_lens: Tensor  # [B] filled slots of each row, these tokens included
    cos: Tensor  # [B, 1, T, D] rotary embedding, see `rotate`
    sin: Tensor
    visible: Tensor | None  # [B, 1, T, S] slots that a token sees; for attend_torch only


class RotaryEmbedding(nn.Module):
    """Angles of the rotary embedding, computed on the fly.

    There is no table, so there is no buffer that `model.to(torch.bfloat16)` could round.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        scaling = config.rope_scaling or RopeScaling(1.0, 1.0, 2.0, config.max_position)
        self.head_dim = config.head_dim
        self.theta = float(config.rope_theta)
        self.factor = float(scaling.factor)
        self.low_freq_factor = float(scaling.low_freq_factor)
        self.high_freq_factor = float(scaling.high_freq_factor)
        self.original_max_position = scaling.original_max_position

    def forward(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Factors for `rotate`, float32 `[B, 1, T, D]`, for `slots [B, T]`."""
        exponents = torch.arange(0, self.head_dim, 2, device=slots.device).float() / self.head_dim
        frequencies = 1.0 / torch.pow(self.theta, exponents)
        if self.factor != 1.0:
            # Fast frequencies stay, slow ones are divided by `factor`, a ramp lies between.
            turns = frequencies * (self.original_max_position / (2 * math.pi))
            ramp = self.high_freq_factor - self.low_freq_factor
            kept = ((turns - self.low_freq_factor) / ramp).clamp(0, 1)
            frequencies = frequencies * (kept + (1 - kept) / self.factor)
        angles = (slots.unsqueeze(-1).float() * frequencies).unsqueeze(1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs `(x[i], x[i + D / 2])` of `x [B, H, T, D]` by their angles, in float32.

    `cos` and `sin` have a factor for each element: the sine of a pair's first one is negated.
    """
    exact = x.float()
    partners = exact.roll(x.size(-1) // 2, -1)
    return torch.addcmul(exact * cos, partners, sin).type_as(x)


class Linear(nn.Linear):
    """`nn.Linear` without bias, see `project`."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        return project(x, self.weight)


def project(x: Tensor, weight: Tensor) -> Tensor:
    """`x [..., in_features] @ weight.T`.

    In bfloat16 `linear` rearranges the weights on every call, which a single row does not repay:
    matrix times vector takes 0.5 to 0.9 of its time. Other dtypes gain nothing, or lose.
    """
    if x.dtype == torch.bfloat16 and x.numel() == weight.size(1):
        out = torch.mv(weight, x.flatten())
        return out.view(x.shape[:-1] + out.shape)
    return nn.functional.linear(x, weight)


def grow(cache: Tensor, new: Tensor, slots: Tensor, size: int) -> Tensor:
    """A copy of `cache`, enlarged to `size` slots, with `new [B, H_kv, T, D]` at `slots [B, T]`.

    This is the `torch.cat` of a plain PyTorch decoder, for rows that may differ in length.
    """
    room = new.new_zeros([new.size(0), new.size(1), size - cache.size(2), new.size(3)])
    index = slots[:, None, :, None].expand_as(new)
    return torch.cat([cache, room], 2).scatter_(2, index, new)


class Attention(nn.Module):
    """Self-attention of one layer over its two cache tensors."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.attention_impl = config.attention_impl
        self.key_index, self.value_index = 2 * layer, 2 * layer + 1
        query_size = config.num_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, query_size)
        self.k_proj = Linear(config.hidden_size, kv_size)
        self.v_proj = Linear(config.hidden_size, kv_size)
        self.o_proj = Linear(query_size, config.hidden_size)

    def forward(self, x: Tensor, new: NewTokens, cache: list[Tensor] | None) -> Tensor:
        """Add the tokens `x [B, T, hidden_size]` to any `cache`, and attend from them to all."""
        query = rotate(self.split_heads(self.q_proj(x)), new.cos, new.sin)
        key = rotate(self.split_heads(self.k_proj(x)), new.cos, new.sin)
        value = self.split_heads(self.v_proj(x))
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
            return torch.ops.mqa.attention(query, key, value, is_causal=True)
        return nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        )

    def attend_mqa(
        self, query: Tensor, key: Tensor, value: Tensor, new: NewTokens, cache: list[Tensor]
    ) -> Tensor:
        """Append to the preallocated cache in place, then attend to its valid slots."""
        keys, values = cache[self.key_index], cache[self.value_index]
        torch.ops.mqa.kv_append(keys, values, key, value, new.positions)
        return torch.ops.mqa.attention(query, keys, values, is_causal=True, seq_lens=new.seq_lens)

    def attend_torch(
        self, query: Tensor, key: Tensor, value: Tensor, new: NewTokens, cache: list[Tensor]
    ) -> Tensor:
        """Plain PyTorch: replace the cache tensors by larger ones and mask what is ahead."""
        visible = new.visible
        assert visible is not None
        keys = grow(cache[self.key_index], key, new.slots, visible.size(3))
        values = grow(cache[self.value_index], value, new.slots, visible.size(3))
        cache[self.key_index], cache[self.value_index] = keys, values
        return nn.functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=visible, enable_gqa=True
        )


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, hidden_size]` to the same."""
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Attention and feed-forward network, each normalised before and added."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, new: NewTokens, cache: list[Tensor] | None) -> Tensor:
        """`[B, T, hidden_size]` to the same."""
        x = x + self.self_attn(self.input_layernorm(x), new, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """A LLaMA-family decoder. Parameters are named as in Hugging Face's `LlamaModel`.

    The dtype of the weights is the dtype of the computation and of the cache; logits are float32.
    Appending to a cache has no backward: call under `torch.no_grad()` if weights require grad, but
    for `sequence_logits`, which keeps no cache.
    `torch.compile(fullgraph=True)` takes every method, with `attention_impl="mqa"` and a cache
    made outside: the caches of "torch" grow to what the positions say.

    Example:
        >>> config = DecoderConfig(num_layers=2, hidden_size=64, num_heads=4, num_kv_heads=1,
        ...     head_dim=16, intermediate_size=128, vocab_size=100, max_position=32)
        >>> model = Decoder(config).requires_grad_(False)
        >>> cache = model.new_cache(batch=1, capacity=8)
        >>> logits = model.prefill(torch.tensor([[5, 7, 9]]), torch.tensor([3]), cache)
        >>> model.decode(logits.argmax(-1), torch.tensor([3]), cache).shape
        torch.Size([1, 100])
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.num_layers = config.num_layers
        self.num_kv_heads = config.num_kv_heads
        self.head_dim = config.head_dim
        self.max_position = config.max_position
        self.attention_impl = config.attention_impl
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary = RotaryEmbedding(config)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head: Linear | None = None
        if not config.tie_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)

    @classmethod
    def from_weights(cls, config: DecoderConfig, weights: Mapping[str, Tensor]) -> "Decoder":
        """A decoder that takes over `weights` (a complete `state_dict`) without copying them."""
        with torch.device("meta"):
            model = cls(config)
        model.load_state_dict(weights, assign=True)
        return model.requires_grad_(False)

    def with_attention_impl(self, attention_impl: str) -> "Decoder":
        """The same decoder, sharing its weights, with attention by "mqa" or by "torch"."""
        config = replace(self.config, attention_impl=attention_impl)
        return Decoder.from_weights(config, self.state_dict())

    @torch.jit.export
    def new_cache(self, batch: int, capacity: int) -> list[Tensor]:
        """An empty cache for `batch` sequences of up to `capacity` tokens each.

        With `attention_impl="torch"` the tensors start without slots, and each call replaces
        them, in the list, by larger ones.
        """
        if batch < 1 or capacity < 1 or capacity > self.max_position:
            raise ValueError(
                f"new_cache: expected batch >= 1 and capacity in [1, {self.max_position}] "
                f"(max_position), got batch {batch} and capacity {capacity}"
            )
        slots = capacity if self.attention_impl == "mqa" else 0
        shape = [batch, self.num_kv_heads, slots, self.head_dim]
        return [self.embed_tokens.weight.new_empty(shape) for _ in range(2 * self.num_layers)]

    def forward(self, tokens: Tensor, positions: Tensor, cache: list[Tensor]) -> Tensor:
        """Append `tokens [B, T]` from slot `positions[b]` on; logits `[B, T, vocab]` of all."""
        return self.logits(self.hidden(tokens, positions, cache))

    def sequence_logits(self, tokens: Tensor) -> Tensor:
        """Logits `[B, T, vocab]` of whole sequences `tokens [B, T]`, differentiable."""
        return self.logits(self.hidden(tokens, tokens.new_zeros([tokens.size(0)]), None))

    @torch.jit.export
    def extend(
        self, tokens: Tensor, lengths: Tensor, positions: Tensor, cache: list[Tensor]
    ) -> Tensor:
        """Append right-padded `tokens [B, T]`; logits `[B, vocab]` of each row's last valid one.

        Args:
            tokens: int64 `[B, T]`; of row b the first `lengths[b]` count, the rest is padding.
            lengths: int64 `[B]`, each in `[1, T]`.
            positions: int64 `[B]`, the slot of each row's first new token. Padding is written to
                the slots behind a row's valid ones; the next tokens overwrite it.
            cache: from `new_cache`.
        """
        valid = ((lengths >= 1) & (lengths <= tokens.size(1))).all()
        if torch.compiler.is_compiling():  # a graph cannot branch on what a tensor holds
            torch._assert_async(valid, "extend: expected lengths in [1, T]")
        elif not bool(valid):
            raise ValueError(f"extend: expected lengths in [1, {tokens.size(1)}], got {lengths}")
        rows = torch.arange(tokens.size(0), device=tokens.device)
        return self.logits(self.hidden(tokens, positions, cache)[rows, lengths - 1])

    @torch.jit.export
    def prefill(self, tokens: Tensor, lengths: Tensor, cache: list[Tensor]) -> Tensor:
        """`extend` from slot 0: the prompts, right-padded, into a new cache."""
        return self.extend(tokens, lengths, torch.zeros_like(lengths), cache)

    @torch.jit.export
    def decode(self, tokens: Tensor, positions: Tensor, cache: list[Tensor]) -> Tensor:
        """Write `tokens [B]` to slots `positions [B]`; logits `[B, vocab]` of the next tokens."""
        return self.forward(tokens.unsqueeze(1), positions, cache).squeeze(1)

    def hidden(self, tokens: Tensor, positions: Tensor, cache: list[Tensor] | None) -> Tensor:
        """Final hidden states `[B, T, hidden_size]` of `tokens`, which any cache then holds."""
        num_new = tokens.size(1)
        slots = positions.unsqueeze(1) + torch.arange(num_new, device=tokens.device)
        cos, sin = self.rotary(slots)
        visible: Tensor | None = None
        if cache is not None and self.attention_impl == "torch":
            size = max(int(slots.max().item()) + 1, cache[0].size(2))
            visible = torch.arange(size, device=tokens.device) <= slots[:, None, :, None]
        new = NewTokens(positions, slots, positions + num_new, cos, sin, visible)
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, new, cache)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token of the vocabulary, float32 `[..., vocab]`."""
        weight = self.embed_tokens.weight
        if self.lm_head is not None:
            weight = self.lm_head.weight
        return project(hidden, weight).float()
