"""The reference decoder: a transformer with `num_kv_heads` as its switch.

`num_kv_heads == num_heads` is multi-head attention, 1 is multi-query attention, anything between
is grouped-query attention. What else architectures differ in, the configuration says, and the
modules are chosen accordingly. Every method works eagerly and under `torch.jit.script`.

Letters: `B` sequences, `T` new tokens, `S` cache slots, `H_q`/`H_kv` query/KV heads, `D` head_dim.
Token number p of a sequence lives in slot p of its row of every cache tensor. A cache is the flat
list `[key_0, value_0, key_1, value_1, ...]` over the layers, each `[B, H_kv, S, D]`; if its
elements have 8 bits, their scales follow: `[..., key_scale_0, value_scale_0, ...]`, each float32
`[B, H_kv, S]`. Packed keys are `[B, H_kv, S / 16, D, 16]`. Without a cache, for training, the new
tokens are whole sequences.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from mqa.config import DecoderConfig
from mqa.layers import make_layer
from mqa.norms import make_norm
from mqa.positions import LearnedPositions, RotaryEmbedding
from mqa.projection import Linear, project
from mqa.self_attention import NewTokens


class Decoder(nn.Module):
    """A decoder-only transformer. Parameters are named as in Hugging Face's `LlamaModel`.

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
        self.embedding_scale = float(config.embedding_scale)
        self.logit_softcap = float(config.logit_softcap or 0)
        self.row_by_row = False  # see `Linear`; for the tied output matrix
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions: LearnedPositions | None = None
        if config.positions == "learned":
            self.embed_positions = LearnedPositions(config.max_position, config.hidden_size)
        self.rotaries = nn.ModuleList(
            RotaryEmbedding(config.head_dim, theta, scaling) for theta, scaling in config.rotaries
        )
        self.layers = nn.ModuleList(make_layer(config, i) for i in range(config.num_layers))
        self.norm = make_norm(config, config.hidden_size)
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
    def new_cache(
        self, batch: int, capacity: int, dtype: str = "auto", packed_keys: bool = False
    ) -> list[Tensor]:
        """An empty cache for `batch` sequences of up to `capacity` tokens each.

        With `attention_impl="torch"` the tensors start without slots, and each call replaces
        them, in the list, by larger ones.

        Args:
            batch: number of sequences.
            capacity: slots of each.
            dtype: of the elements: "auto" (that of the weights), "int8" or "float8_e4m3fn". With
                8 bits every token and head has a scale.
            packed_keys: lay keys out as decode steps with up to 8 query heads per KV head read them
                fastest, see `mqa.attention`; the slots are rounded up to 16. On CPU only.
        """
        if batch < 1 or capacity < 1 or capacity > self.max_position:
            raise ValueError(
                f"new_cache: expected batch >= 1 and capacity in [1, {self.max_position}] "
                f"(max_position), got batch {batch} and capacity {capacity}"
            )
        if dtype not in ["auto", "int8", "float8_e4m3fn"]:
            raise ValueError(f"new_cache: expected dtype auto, int8 or float8_e4m3fn, got {dtype}")
        weight = self.embed_tokens.weight
        if self.attention_impl != "mqa" and (dtype != "auto" or packed_keys):
            kind = "a cache with packed keys" if packed_keys else f"a cache of {dtype}"
            raise ValueError(f"new_cache: {kind} needs attention_impl mqa, got torch")
        if packed_keys and weight.device.type != "cpu":
            raise ValueError(f"new_cache: packed keys need a model on cpu, got {weight.device}")
        slots = capacity if self.attention_impl == "mqa" else 0
        if packed_keys:
            slots = (slots + 15) // 16 * 16
        values = [batch, self.num_kv_heads, slots, self.head_dim]
        keys = values
        if packed_keys:
            keys = [batch, self.num_kv_heads, slots // 16, self.head_dim, 16]
        element = weight.dtype
        if dtype != "auto":
            element = torch.int8 if dtype == "int8" else torch.float8_e4m3fn
        cache: list[Tensor] = []
        for _ in range(self.num_layers):
            cache.append(weight.new_empty(keys, dtype=element))
            cache.append(weight.new_empty(values, dtype=element))
        if dtype != "auto":
            for _ in range(2 * self.num_layers):
                cache.append(weight.new_empty(values[:3], dtype=torch.float32))
        return cache

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
        rotations: list[tuple[Tensor, Tensor]] = []
        for rotary in self.rotaries:
            rotations.append(rotary(slots))
        visible: Tensor | None = None
        if cache is not None and self.attention_impl == "torch":
            size = max(int(slots.max().item()) + 1, cache[0].size(2))
            visible = torch.arange(size, device=tokens.device) <= slots[:, None, :, None]
        new = NewTokens(positions, slots, positions + num_new, rotations, visible)
        x = self.embed(tokens, slots)
        for layer in self.layers:
            x = layer(x, new, cache)
        return self.norm(x)

    def embed(self, tokens: Tensor, slots: Tensor) -> Tensor:
        """What the first layer reads, `[B, T, hidden_size]`."""
        x = self.embed_tokens(tokens)
        if self.embedding_scale != 1.0:
            x = x * x.new_full([], self.embedding_scale)  # a tensor: rounded to the dtype of x
        if self.embed_positions is not None:
            x = self.embed_positions(x, slots)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token of the vocabulary, float32 `[..., vocab]`."""
        weight = self.embed_tokens.weight
        if self.lm_head is not None:
            weight = self.lm_head.weight
        logits = project(hidden, weight, row_by_row=self.row_by_row).float()
        if self.logit_softcap == 0:
            return logits
        return torch.tanh(logits / self.logit_softcap) * self.logit_softcap
