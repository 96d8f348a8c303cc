"""Text generation: greedy or sampled, for a batch of prompts of different lengths."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mqa.cache import KVCache
from mqa.decoder import Decoder
from mqa.exact_blocks import with_exact_blocks
from mqa.sampling import Sampling
from mqa.speculative import Drafter


@dataclass
class GenerationStats:
    """What a call of `generate` took; up to date after every step, also if it is interrupted.

    Attributes:
        cache_bytes: memory of the cache.
        prefill_tokens: tokens of the prompts.
        prefill_seconds: until the first new tokens.
        decode_tokens: new tokens but for the first ones, which the prefill gave.
        decode_steps: forward passes that gave them.
        decode_seconds: time of these steps, that of the drafter included.
        drafted_tokens: guesses that were verified.
        accepted_tokens: those that were right.
    """

    cache_bytes: int = 0
    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_steps: int = 0
    decode_seconds: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


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
    cache_dtype: str = "auto",
    drafter: Drafter | None = None,
    on_token: Callable[[int, int], None] | None = None,
    stats: GenerationStats | None = None,
) -> list[list[int]]:
    """Continue every prompt by up to `max_new_tokens` tokens.

    A sequence comes out as it would alone: it attends only to itself, and draws from a random
    generator of its own. A drafter changes no token, greedy or sampled: every guess is compared
    with what is chosen in its place from logits that have the bits of a single step.

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
        cache_dtype: of the cache's elements, see `Decoder.new_cache`.
        drafter: guesses tokens, which are verified in one forward pass: `PromptLookup` or
            `DraftModel`. Every sequence of a batch keeps as many as are right for it.
        on_token: called as `on_token(b, token)` as soon as prompt number b gets a token.
        stats: filled in as generation goes on.

    Returns:
        The new tokens of each prompt.

    Raises:
        ValueError: an option is out of its range, a prompt is empty or has a token outside the
            vocabulary, prompt and new tokens do not fit into the cache, or there is a drafter and
            the model cannot be computed in blocks with the bits of single steps on this machine.
    """
    if max_new_tokens < 1:
        raise ValueError(f"generate: expected max_new_tokens >= 1, got {max_new_tokens}")
    sampling = Sampling(temperature, top_k, top_p)
    _check_prompts(prompts, model.config.vocab_size)
    # The last new token is returned without having been in the cache.
    longest = max(len(prompt) for prompt in prompts)
    needed = longest + max_new_tokens - 1
    if capacity is None:
        # Room for guesses up to the end, where the model has it; single steps do without.
        guesses = drafter.num_tokens if drafter else 0
        capacity = max(needed, min(needed + guesses, model.max_position))
    elif needed > capacity:
        raise ValueError(
            f"generate: expected a cache of at least {needed} slots for the longest prompt "
            f"({longest} tokens) and {max_new_tokens} new tokens, got {capacity}"
        )
    batch = _Batch(
        prompts=prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        generators=_generators(model, seed, len(prompts)),
        stop_tokens=frozenset(model.config.eos_token_ids if stop_tokens is None else stop_tokens),
        on_token=on_token,
    )
    cache = KVCache(model, len(prompts), capacity, cache_dtype)
    stats = stats or GenerationStats()
    stats.cache_bytes = cache.nbytes
    if drafter is not None:
        drafter.start(model, len(prompts), capacity)
    _prefill(model, batch, cache, stats)
    if drafter is not None and any(batch.running):
        model = with_exact_blocks(model, len(prompts) * (1 + drafter.num_tokens))
    while any(batch.running):
        _step(model, batch, cache, drafter, stats)
    return batch.outputs


class _Batch:
    """The sequences, and what becomes of the tokens chosen for them."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
        stop_tokens: Collection[int],
        on_token: Callable[[int, int], None] | None,
    ) -> None:
        self.max_new_tokens = max_new_tokens
        self.sampling = sampling
        self.generators = generators
        self.stop_tokens = stop_tokens
        self.on_token = on_token
        self.sequences = [list(prompt) for prompt in prompts]
        self.outputs: list[list[int]] = [[] for _ in prompts]
        self.running = [True] * len(prompts)

    def accept(self, b: int, token: int) -> None:
        """Let sequence b go on with `token`, or end."""
        self.running[b] = token not in self.stop_tokens
        if not self.running[b]:
            return
        self.sequences[b].append(token)
        self.outputs[b].append(token)
        self.running[b] = self.remaining(b) > 0
        if self.on_token is not None:
            self.on_token(b, token)

    def remaining(self, b: int) -> int:
        """How many tokens sequence b may still get."""
        return self.max_new_tokens - len(self.outputs[b])

    def choose(self, b: int, logits: Tensor) -> int:
        """The next token of sequence b from `logits [vocab]`."""
        return int(self.sampling.choose(logits[None], self.generators[b : b + 1]))


def _prefill(model: Decoder, batch: _Batch, cache: KVCache, stats: GenerationStats) -> None:
    """Fill the cache with the prompts, and choose the first new tokens."""
    start = time.perf_counter()
    device = cache.lengths.device
    lengths = torch.tensor([len(tokens) for tokens in batch.sequences], device=device)
    tokens = _padded(batch.sequences, device)
    logits = model.extend(tokens, lengths, cache.reserve(tokens.size(1)), cache.tensors)
    cache.advance(lengths)
    chosen = [batch.choose(b, logits[b]) for b in range(len(batch.sequences))]
    stats.prefill_tokens = int(lengths.sum())
    stats.prefill_seconds = time.perf_counter() - start
    for b, token in enumerate(chosen):
        batch.accept(b, token)


def _step(
    model: Decoder,
    batch: _Batch,
    cache: KVCache,
    drafter: Drafter | None,
    stats: GenerationStats,
) -> None:
    """Choose one token more for each sequence, and as many again as were guessed right."""
    start = time.perf_counter()
    # A finished sequence stays in the batch: its row goes on from slot 0 with any token.
    for b, is_running in enumerate(batch.running):
        if not is_running:
            cache.lengths[b] = 0
    drafts = _drafts(batch, cache, drafter)
    blocks = [
        [sequence[-1], *draft] if is_running else [0]
        for sequence, draft, is_running in zip(batch.sequences, drafts, batch.running, strict=True)
    ]
    # Blocks of one size, so that there is one more than single steps whose bits must agree.
    width = 1 + drafter.num_tokens if drafter is not None and any(drafts) else 1
    tokens = _padded(blocks, cache.lengths.device, width)
    logits = model(tokens, cache.reserve(width), cache.tensors)
    stats.decode_steps += 1
    for b, draft in enumerate(drafts):
        if not batch.running[b]:
            continue
        stats.drafted_tokens += len(draft)
        for t in range(len(draft) + 1):
            token = batch.choose(b, logits[b, t])
            batch.accept(b, token)
            cache.lengths[b] += 1  # the token at t is in its place; wrong guesses lie behind
            is_right = t < len(draft) and token == draft[t]
            stats.accepted_tokens += is_right
            if not is_right or not batch.running[b]:
                break
    stats.decode_tokens = sum(max(len(output) - 1, 0) for output in batch.outputs)
    stats.decode_seconds += time.perf_counter() - start


def _drafts(batch: _Batch, cache: KVCache, drafter: Drafter | None) -> list[list[int]]:
    """Guesses for each sequence; none if the cache has no room for them."""
    if drafter is None or int(cache.lengths.max()) + 1 + drafter.num_tokens > cache.capacity:
        return [[] for _ in batch.sequences]
    wanted = [
        sequence if is_running else None
        for sequence, is_running in zip(batch.sequences, batch.running, strict=True)
    ]
    # One token comes anyway, so guesses beyond all but one are of no use.
    return [draft[: batch.remaining(b) - 1] for b, draft in enumerate(drafter.draft(wanted))]


def _padded(rows: Sequence[Sequence[int]], device: torch.device, width: int = 0) -> Tensor:
    """Tokens `[B, T]`, zeros behind the shorter rows; T is at least `width`."""
    size = max(width, *(len(row) for row in rows))
    return torch.tensor([[*row, *[0] * (size - len(row))] for row in rows], device=device)


def _generators(model: Decoder, seed: int, count: int) -> list[torch.Generator]:
    device = model.embed_tokens.weight.device
    return [torch.Generator(device).manual_seed(seed + b) for b in range(count)]


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
