"""The key-value cache of a batch of sequences."""

import torch
from torch import Tensor

from mqa.decoder import Decoder


class KVCache:
    """The cache tensors of a decoder, and how many of their slots each sequence fills.

    Attributes:
        tensors: `[key_0, value_0, key_1, ...]`, each `[B, H_kv, S, D]` with S = capacity
            (with `attention_impl="torch"`, S is what has been filled so far); 8-bit elements and
            packed keys are laid out as `Decoder.new_cache` says.
        lengths: int64 `[B]`, the filled slots of each sequence.
        capacity: the most tokens a sequence may have.

    Example:
        >>> import mqa
        >>> config = mqa.DecoderConfig(num_layers=2, hidden_size=64, num_heads=4, num_kv_heads=1,
        ...     head_dim=16, intermediate_size=128, vocab_size=100, max_position=32)
        >>> model = Decoder(config).requires_grad_(False)
        >>> cache = KVCache(model, batch=1, capacity=8)
        >>> tokens, lengths = torch.tensor([[5, 7, 9]]), torch.tensor([3])
        >>> logits = model.extend(tokens, lengths, cache.reserve(3), cache.tensors)
        >>> cache.advance(lengths)
        >>> cache.lengths, cache.nbytes  # 2 layers * 2 sides * 8 slots * 16 elements * 4 bytes
        (tensor([3]), 2048)
    """

    def __init__(
        self,
        model: Decoder,
        batch: int,
        capacity: int,
        dtype: str = "auto",
        packed_keys: bool = False,
    ) -> None:
        self.tensors: list[Tensor] = model.new_cache(batch, capacity, dtype, packed_keys)
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=self.tensors[0].device)
        self.capacity = capacity

    @property
    def nbytes(self) -> int:
        """Memory of the cache tensors, scales included."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def reserve(self, num_tokens: int) -> Tensor:
        """The slot of each sequence's first new token, int64 `[B]`.

        Raises:
            ValueError: some sequence has no room for `num_tokens` more.
        """
        filled = int(self.lengths.max())
        if filled + num_tokens > self.capacity:
            raise ValueError(
                f"KVCache is full: expected at most {self.capacity} tokens in a sequence, "
                f"got {filled} in the cache and {num_tokens} new"
            )
        return self.lengths.clone()

    def advance(self, num_tokens: Tensor | int) -> None:
        """Count `num_tokens` (an int, or one number per sequence) new tokens as filled."""
        self.lengths += num_tokens
