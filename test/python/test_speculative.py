"""Speculative decoding: the same tokens, in fewer steps."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

import mqa
from decoders import VOCAB_SIZE, tiny_decoder
from programs import ROOT
from reference import load_tokenizer
from smollm2 import install

PROMPTS = [[5, 17, 60, 2, 33, 8, 71], [11], [40, 3, 3, 80]]


class Oracle:
    """Knows how every sequence goes on, and errs in every `period`-th place if there is one."""

    def __init__(self, continuations: Sequence[Sequence[int]], period: int | None = None) -> None:
        self.num_tokens = 4
        self.continuations = continuations
        self.period = period

    def start(self, model: mqa.Decoder, batch: int, capacity: int) -> None:
        assert batch == len(self.continuations)

    def draft(self, sequences: Sequence[Sequence[int] | None]) -> list[list[int]]:
        return [
            [] if tokens is None else self.guess(b, len(tokens) - len(PROMPTS[b]))
            for b, tokens in enumerate(sequences)
        ]

    def guess(self, b: int, known: int) -> list[int]:
        return [
            (token + 1) % VOCAB_SIZE if self.period and i % self.period == 0 else token
            for i, token in enumerate(self.continuations[b])
        ][known : known + self.num_tokens]


def continue_(model: mqa.Decoder, **options: Any) -> tuple[list[list[int]], mqa.GenerationStats]:
    stats = mqa.GenerationStats()
    options = {"max_new_tokens": 21, "stop_tokens": (), "stats": stats} | options
    return mqa.generate(model, PROMPTS, **options), stats


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cache_dtype", ["auto", "int8"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("period", [None, 1, 3])
def test_right_and_wrong_guesses_change_no_token(
    dtype: torch.dtype, cache_dtype: str, temperature: float, period: int | None
) -> None:
    model = tiny_decoder().to(dtype)
    options = {"temperature": temperature, "seed": 7, "cache_dtype": cache_dtype}
    expected, plain = continue_(model, **options)
    tokens, stats = continue_(model, **options, drafter=Oracle(expected, period))
    assert tokens == expected
    assert plain.decode_steps == plain.decode_tokens / 3 == stats.decode_tokens / 3 == 20
    if period is None:  # a step gives five tokens
        assert stats.decode_steps == 4
        assert stats.accepted_tokens == stats.drafted_tokens == 3 * 16
    elif period == 1:
        assert stats.decode_steps == 20
        assert stats.accepted_tokens == 0
    else:
        assert 4 < stats.decode_steps < 20
        assert 0 < stats.accepted_tokens < stats.drafted_tokens


def test_sequences_of_a_batch_run_ahead_on_their_own() -> None:
    model = tiny_decoder()
    expected, _ = continue_(model)
    wrong = [[(token + 1) % VOCAB_SIZE for token in tokens] for tokens in expected]
    seen: list[int] = []
    tokens, stats = continue_(
        model,
        capacity=27,  # which the first sequence fills long before the others end
        drafter=Oracle([expected[0], wrong[1], wrong[2]]),
        on_token=lambda b, token: seen.append(b),
    )
    assert tokens == expected
    assert stats.decode_steps == 20
    assert seen[: 3 + 7] == [0, 1, 2, 0, 0, 0, 0, 0, 1, 2]
    assert seen.index(0, seen.index(2)) < len(seen) - 1 - seen[::-1].index(0) < seen.index(1, 25)


def test_a_stop_token_among_the_guesses_ends_the_sequence_before_it() -> None:
    model = tiny_decoder()
    free, _ = continue_(model)
    stop = next(token for token in free[0][3:] if token not in free[1] and token not in free[2])
    cut = free[0].index(stop)
    assert 3 <= cut < 21
    tokens, _ = continue_(model, stop_tokens=[stop], drafter=Oracle(free))
    assert tokens == [free[0][:cut], *free[1:]]


def test_a_full_cache_is_no_obstacle() -> None:
    model = tiny_decoder()
    expected, plain = continue_(model, max_new_tokens=23)
    drafter = Oracle(expected)
    assert continue_(model, max_new_tokens=23, drafter=drafter)[1].decode_steps == 5
    tokens, stats = continue_(model, max_new_tokens=23, capacity=29, drafter=drafter)
    assert tokens == expected
    assert plain.cache_bytes == stats.cache_bytes
    assert stats.decode_steps == 6  # the last two tokens come one by one
    expected, _ = continue_(model, max_new_tokens=58)  # max_position is 64
    assert continue_(model, max_new_tokens=58, drafter=Oracle(expected))[0] == expected


def test_the_model_itself_is_a_perfect_draft_model() -> None:
    model = tiny_decoder()
    expected, _ = continue_(model)
    tokens, stats = continue_(model, drafter=mqa.DraftModel(model, num_tokens=3))
    assert tokens == expected
    assert stats.decode_steps == 5
    assert stats.accepted_tokens == stats.drafted_tokens == 3 * 15


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_another_draft_model_is_rolled_back(temperature: float) -> None:
    model = tiny_decoder()
    multi_query = mqa.convert(model, num_kv_heads=1)
    options = {"temperature": temperature, "max_new_tokens": 40}
    expected, _ = continue_(model, **options)
    drafter = mqa.DraftModel(multi_query)
    tokens, stats = continue_(model, **options, drafter=drafter)
    assert tokens == expected
    assert 0 < stats.accepted_tokens < stats.drafted_tokens
    # Its guesses are what it would say itself, whatever it guessed before.
    drafter.start(model, 3, 64)
    for end in (6, 9, 10, 13):
        sequences = [prompt + new[:end] for prompt, new in zip(PROMPTS, expected, strict=True)]
        assert drafter.draft(sequences) == mqa.generate(multi_query, sequences, 4, stop_tokens=())


@pytest.mark.parametrize(
    ("sequence", "guesses"),
    [
        ([1, 2, 3, 9, 8, 7, 2, 3], [9, 8, 7, 2, 3, 9]),  # and on from the guesses
        ([5, 3, 1, 2, 3, 6, 9, 3], [6, 9, 3, 6, 9, 3]),  # the latest of two
        ([1, 2, 4, 4, 2, 5, 1, 2], [4, 4, 2, 5, 1, 2]),  # the longer ending, not the latest
        ([7, 7], [7, 7, 7, 7, 7, 7]),
        ([1, 2, 3], []),
        ([1], []),
    ],
)
def test_prompt_lookup_goes_on_as_the_text_did(sequence: list[int], guesses: list[int]) -> None:
    drafter = mqa.PromptLookup(num_tokens=6, max_ngram=3)
    drafter.start(MagicMock(), batch=2, capacity=64)
    assert drafter.draft([None, sequence]) == [[], guesses]
    # The index grows with the sequence.
    drafter.start(MagicMock(), batch=1, capacity=64)
    assert [drafter.draft([sequence[:end]]) for end in range(1, len(sequence) + 1)][-1] == [guesses]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: mqa.PromptLookup(0), "PromptLookup: expected num_tokens >= 1, got 0"),
        (lambda model: mqa.PromptLookup(4, 0), "PromptLookup: expected max_ngram >= 1, got 0"),
        (lambda model: mqa.DraftModel(model, 0), "DraftModel: expected num_tokens >= 1, got 0"),
        (
            lambda model: mqa.DraftModel(tiny_decoder(vocab_size=90)),
            "DraftModel: expected the vocabulary of the model, 89 tokens, got 90",
        ),
        (
            lambda model: mqa.DraftModel(tiny_decoder(max_position=16)),
            "DraftModel: expected max_position >= 31, the cache's capacity, got 16",
        ),
    ],
)
def test_bad_drafters_are_refused(make: Any, message: str) -> None:
    model = tiny_decoder()
    with pytest.raises(ValueError, match=message):
        continue_(model, drafter=make(model))


def test_attention_by_torch_is_refused() -> None:
    with pytest.raises(ValueError, match="attention_impl 'mqa'"):
        continue_(tiny_decoder(attention_impl="torch"), drafter=mqa.PromptLookup())


def test_a_thousand_tokens_of_real_weights_in_bfloat16() -> None:
    gguf = install(ROOT / "build/demo/smollm2")
    whole = mqa.load_gguf(gguf, torch.bfloat16)
    config = replace(
        whole.config, num_layers=6
    )  # the sizes of the products matter, not their number
    weights = {
        name: weight
        for name, weight in whole.state_dict().items()
        if not name.startswith("layers.") or int(name.split(".")[1]) < config.num_layers
    }
    model = mqa.Decoder.from_weights(config, weights)
    prompt = load_tokenizer(gguf).encode("The lighthouse keeper climbed the stairs every").ids
    (expected,) = mqa.generate(model, [prompt], 1000, stop_tokens=())
    stats = mqa.GenerationStats()
    (tokens,) = mqa.generate(
        model, [prompt], 1000, stop_tokens=(), drafter=mqa.PromptLookup(), stats=stats
    )
    assert tokens == expected
    assert stats.decode_steps < 900
