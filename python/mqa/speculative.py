"""Guesses of the next tokens, for `generate` to verify several in one forward pass.

A drafter never changes what is generated, only how fast: see Leviathan et al., arXiv:2211.17192.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mqa.cache import KVCache
from mqa.decoder import Decoder


class Drafter(Protocol):
    """Guesses how sequences go on."""

    @property
    def num_tokens(self) -> int:
        """The most tokens that it guesses for a sequence at a time."""

    def start(self, model: Decoder, batch: int, capacity: int) -> None:
        """Forget everything, and prepare for `batch` sequences that `model` continues.

        Args:
            model: the decoder that verifies the guesses.
            batch: the number of sequences.
            capacity: the most tokens that a sequence and its guesses will have together.
        """

    def draft(self, sequences: Sequence[Sequence[int] | None]) -> list[list[int]]:
        """Up to `num_tokens` guesses for each sequence, perhaps none.

        Args:
            sequences: all tokens so far, which begin with those of the last call but for what was
                guessed; None where a sequence has ended and wants no guesses.
        """


class PromptLookup:
    """Guesses that a sequence goes on as it did where it last had the same few tokens.

    That costs next to nothing, and is often right when a text repeats itself or its prompt: code,
    quotations, summaries.

    Args:
        num_tokens: tokens to guess at a time.
        max_ngram: the longest ending to look for; shorter ones are tried next, down to one token.

    Raises:
        ValueError: a number is less than 1.
    """

    def __init__(self, num_tokens: int = 8, max_ngram: int = 3) -> None:
        _check_positive("PromptLookup", num_tokens=num_tokens, max_ngram=max_ngram)
        self.num_tokens = num_tokens
        self.max_ngram = max_ngram
        self._indices: list[_NgramIndex] = []

    def start(self, model: Decoder, batch: int, capacity: int) -> None:
        """See `Drafter`."""
        self._indices = [_NgramIndex(self.max_ngram) for _ in range(batch)]

    def draft(self, sequences: Sequence[Sequence[int] | None]) -> list[list[int]]:
        """See `Drafter`."""
        return [
            [] if tokens is None else self._continue(tokens, index.find(tokens))
            for tokens, index in zip(sequences, self._indices, strict=True)
        ]

    def _continue(self, tokens: Sequence[int], start: int | None) -> list[int]:
        """What follows from `start` on; past the end, the guesses themselves repeat."""
        if start is None:
            return []
        guesses: list[int] = []
        for i in range(start, start + self.num_tokens):
            guesses.append(tokens[i] if i < len(tokens) else guesses[i - len(tokens)])
        return guesses


class _NgramIndex:
    """Where each n-gram of a growing sequence last ended."""

    def __init__(self, max_ngram: int) -> None:
        self.max_ngram = max_ngram
        self.ends: dict[tuple[int, ...], int] = {}
        self.indexed = 0  # n-grams that end here or before are in `ends`

    def find(self, tokens: Sequence[int]) -> int | None:
        """The latest place before the end that follows the longest ending of `tokens`."""
        for end in range(self.indexed + 1, len(tokens)):
            for size in range(1, min(self.max_ngram, end) + 1):
                self.ends[tuple(tokens[end - size : end])] = end
        self.indexed = len(tokens) - 1
        for size in range(self.max_ngram, 0, -1):
            end = self.ends.get(tuple(tokens[-size:]), 0)
            if end:
                return end
        return None


class DraftModel:
    """Guesses what a smaller decoder with the same vocabulary finds likeliest.

    Args:
        model: the smaller decoder.
        num_tokens: tokens to guess at a time.

    Raises:
        ValueError: `num_tokens` is less than 1.
    """

    def __init__(self, model: Decoder, num_tokens: int = 4) -> None:
        _check_positive("DraftModel", num_tokens=num_tokens)
        self.model = model
        self.num_tokens = num_tokens

    def start(self, model: Decoder, batch: int, capacity: int) -> None:
        """See `Drafter`.

        Raises:
            ValueError: the models differ in vocabulary, or the smaller one has too few positions.
        """
        ours, theirs = self.model.config, model.config
        if ours.vocab_size != theirs.vocab_size:
            raise ValueError(
                f"DraftModel: expected the vocabulary of the model, {theirs.vocab_size} tokens, "
                f"got {ours.vocab_size}"
            )
        if ours.max_position < capacity:
            raise ValueError(
                f"DraftModel: expected max_position >= {capacity}, the cache's capacity, "
                f"got {ours.max_position}"
            )
        self._cache = KVCache(self.model, batch, capacity)
        self._cached: list[list[int]] = [[] for _ in range(batch)]  # the tokens in the cache

    @torch.no_grad()
    def draft(self, sequences: Sequence[Sequence[int] | None]) -> list[list[int]]:
        """See `Drafter`."""
        # A finished sequence stays in the batch: its row goes on from slot 0 with any token.
        wanted = [[0] if tokens is None else list(tokens) for tokens in sequences]
        kept = [
            _common_prefix(cached, tokens[:-1])
            for cached, tokens in zip(self._cached, wanted, strict=True)
        ]
        device = self._cache.lengths.device
        self._cache.lengths = torch.tensor(kept, device=device)  # the rest was rejected
        new = [torch.tensor(tokens[start:]) for tokens, start in zip(wanted, kept, strict=True)]
        lengths = torch.tensor([len(tokens) for tokens in new], device=device)
        tokens = torch.nn.utils.rnn.pad_sequence(new, batch_first=True).to(device)
        columns = [self._likeliest(tokens, lengths)]
        for _ in range(self.num_tokens - 1):
            columns.append(self._likeliest(columns[-1].unsqueeze(1), torch.ones_like(lengths)))
        guesses: list[list[int]] = torch.stack(columns, 1).tolist()
        # The last guess was not fed to the model.
        self._cached = [tokens + row[:-1] for tokens, row in zip(wanted, guesses, strict=True)]
        return [
            [] if tokens is None else row for tokens, row in zip(sequences, guesses, strict=True)
        ]

    def _likeliest(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        positions = self._cache.reserve(tokens.size(1))
        logits = self.model.extend(tokens, lengths, positions, self._cache.tensors)
        self._cache.advance(lengths)
        return logits.argmax(-1)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def _check_positive(where: str, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{where}: expected {name} >= 1, got {number}")
