"""How likely a decoder finds a text."""

import torch
from torch import Tensor, nn

from mqa.cache import KVCache
from mqa.decoder import Decoder


@torch.no_grad()
def nll(model: Decoder, tokens: Tensor, chunk_size: int = 256) -> float:
    """Mean negative log-likelihood of a passage, in nats per token.

    The first token is given, the others are predicted from all before them. The passage is fed
    in chunks, so that memory for logits is `chunk_size * vocab_size`.

    Args:
        model: the decoder.
        tokens: int64 `[T]`, 2 <= T <= max_position + 1.
        chunk_size: tokens per forward pass.

    Raises:
        ValueError: there is nothing to predict, or the passage is longer than `max_position`.
    """
    if tokens.dim() != 1 or tokens.numel() < 2:
        raise ValueError(f"nll: expected at least 2 tokens [T], got shape {list(tokens.shape)}")
    given, wanted = tokens[:-1], tokens[1:]
    cache = KVCache(model, batch=1, capacity=given.numel())
    total = 0.0
    chunks = zip(torch.split(given, chunk_size), torch.split(wanted, chunk_size), strict=True)
    for inputs, targets in chunks:
        positions = cache.reserve(inputs.numel())
        logits = model(inputs.unsqueeze(0), positions, cache.tensors)[0]
        cache.advance(inputs.numel())
        total += nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    return total / wanted.numel()
