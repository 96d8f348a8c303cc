"""Text generation: greedy or sampled, for a batch of prompts of different lengths."""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from mqa.cache import KVCache
from mqa.decoder import Decoder


@torch.no_grad()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_tokens: Collection[int] | None = None,
    capacity: int | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Continue every prompt by up to `max_new_tokens` tokens.

    A sequence comes out as it would alone: it attends only to itself, and draws from a random
    generator of its own.

    Args:
        model: the decoder.
        prompts: token ids; the prompts may differ in length.
        max_new_tokens: when to stop at the latest.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it.
        top_k: sample among the `top_k` likeliest tokens only.
        top_p: sample among the fewest likeliest tokens whose probabilities reach `top_p`.
        seed: prompt number b draws from a generator seeded `seed + b`.
        stop_tokens: end a sequence at any of these, which is not returned; by default the
            model's `eos_token_ids`.
        capacity: slots of the cache per sequence; by default as many as can be needed.
        on_token: called as `on_token(b, token)` as soon as prompt number b gets a token.

    Returns:
        The new tokens of each prompt.

    Raises:
        ValueError: an option is out of its range, a prompt is empty or has a token outside the
            vocabulary, or prompt and new tokens do not fit into the cache. Nothing is computed
            then.
    """
    _check_options(max_new_tokens, temperature, top_k, top_p)
    _check_prompts(prompts, model.config.vocab_size)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    # The last new token is returned without having been in the cache.
    needed = int(lengths.max()) + max_new_tokens - 1
    if capacity is not None and needed > capacity:
        raise ValueError(
            f"generate: expected a cache of at least {needed} slots for the longest prompt "
            f"({int(lengths.max())} tokens) and {max_new_tokens} new tokens, got {capacity}"
        )
    stop = set(model.config.eos_token_ids if stop_tokens is None else stop_tokens)
    device = model.embed_tokens.weight.device
    generators = [torch.Generator(device).manual_seed(seed + b) for b in range(len(prompts))]
    outputs: list[list[int]] = [[] for _ in prompts]
    running = [True] * len(prompts)

    cache = KVCache(model, len(prompts), capacity or needed)
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in prompts], batch_first=True)
    tokens, lengths = tokens.to(device), lengths.to(device)
    for _ in range(max_new_tokens):
        positions = cache.reserve(tokens.size(1))
        logits = model.extend(tokens, lengths, positions, cache.tensors)
        cache.advance(lengths)
        chosen = choose(logits, temperature, top_k, top_p, generators)
        for b, token in enumerate(chosen.tolist()):
            running[b] = running[b] and token not in stop
            if running[b]:
                outputs[b].append(token)
                if on_token is not None:
                    on_token(b, token)
        if not any(running):
            break
        # A finished sequence stays in the batch; what it goes on to say is dropped.
        tokens, lengths = chosen.unsqueeze(1), torch.ones_like(lengths)
    return outputs


def choose(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """The next token of each row of `logits [B, vocab]`, int64 `[B]`."""
    if temperature == 0:
        return logits.argmax(-1)
    weights = probabilities(logits, temperature, top_k, top_p)
    draws = [
        torch.multinomial(row, 1, generator=generator)
        for row, generator in zip(weights, generators, strict=True)
    ]
    return torch.cat(draws)


def probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """The distribution `[B, vocab]` to sample from: temperature, then top-k, then top-p."""
    vocab_size = logits.size(-1)
    kept, ids = (logits / temperature).topk(min(top_k or vocab_size, vocab_size))
    weights = kept.softmax(-1)
    if top_p is not None:
        # A token is dropped if those before it, which are likelier, already reach top_p.
        weights = weights.masked_fill(weights.cumsum(-1) - weights >= top_p, 0)
        weights = weights / weights.sum(-1, keepdim=True)
    return torch.zeros_like(logits).scatter(-1, ids, weights)


def _check_options(
    max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"generate: expected max_new_tokens >= 1, got {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"generate: expected a finite temperature >= 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"generate: expected top_k >= 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"generate: expected top_p in (0, 1], got {top_p}")


def _check_prompts(prompts: Sequence[Sequence[int]], vocab_size: int) -> None:
    if not prompts:
        raise ValueError("generate: expected at least one prompt, got none")
    for b, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"generate: expected at least one token in prompt {b}, got none")
        for token in prompt:
            if not 0 <= token < vocab_size:
                raise ValueError(
                    f"generate: expected tokens in [0, {vocab_size}), got {token} in prompt {b}"
                )
