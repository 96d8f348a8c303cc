"""Generation: greedy and sampled tokens, stopping, streaming, bad input."""

from collections import Counter
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch.testing import assert_close

import mqa
from decoders import VOCAB_SIZE, all_logits, random_tokens, tiny_decoder
from mqa.sampling import Sampling

PROMPTS = [[5, 17, 60, 2, 33, 8, 71], [11], [40, 3, 3, 80]]
LOGITS = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()


@pytest.mark.parametrize("attention_impl", ["mqa", "torch"])
def test_greedy_takes_the_likeliest_token_every_time(attention_impl: str) -> None:
    model = tiny_decoder(attention_impl=attention_impl)
    (tokens,) = mqa.generate(model, [PROMPTS[0]], 20, stop_tokens=())
    logits = all_logits(model, torch.tensor([PROMPTS[0] + tokens]))[0]
    assert tokens == logits[len(PROMPTS[0]) - 1 : -1].argmax(-1).tolist()
    assert len(set(tokens)) > 5


@pytest.mark.parametrize("attention_impl", ["mqa", "torch"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_generates_what_its_prompts_generate_alone(
    temperature: float, attention_impl: str
) -> None:
    model = tiny_decoder(attention_impl=attention_impl)
    together = mqa.generate(model, PROMPTS, 20, temperature=temperature, seed=3, stop_tokens=())
    alone = [
        mqa.generate(model, [prompt], 20, temperature=temperature, seed=3 + b, stop_tokens=())[0]
        for b, prompt in enumerate(PROMPTS)
    ]
    assert together == alone


def test_a_seed_repeats_and_another_differs() -> None:
    model = tiny_decoder()
    first, again, other = (
        mqa.generate(model, PROMPTS, 20, temperature=1.0, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_sequence_ends_before_its_stop_token_and_the_others_go_on() -> None:
    model = tiny_decoder()
    free = mqa.generate(model, PROMPTS, 20, stop_tokens=())
    stop = next(token for token in free[0][3:] if token not in free[1] and token not in free[2])
    cut = free[0].index(stop)
    assert mqa.generate(model, PROMPTS, 20, stop_tokens=[stop]) == [free[0][:cut], *free[1:]]
    # By default the configuration knows where to stop.
    configured = tiny_decoder(eos_token_ids=(stop,))
    assert mqa.generate(configured, PROMPTS, 20) == [free[0][:cut], *free[1:]]


def test_generation_ends_when_all_have_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_decoder()
    extend = MagicMock(wraps=model.extend)
    monkeypatch.setattr(model, "extend", extend)
    assert mqa.generate(model, PROMPTS, 20, stop_tokens=range(VOCAB_SIZE)) == [[], [], []]
    assert extend.call_count == 1


def test_tokens_are_streamed_step_by_step_in_the_order_of_the_prompts() -> None:
    model = tiny_decoder()
    seen: list[tuple[int, int]] = []
    tokens = mqa.generate(
        model, PROMPTS, 4, stop_tokens=(), on_token=lambda b, token: seen.append((b, token))
    )
    assert seen == [(b, tokens[b][step]) for step in range(4) for b in range(3)]


def test_temperature_sharpens_or_flattens() -> None:
    assert_close(Sampling(1.0).probabilities(LOGITS), torch.tensor([[0.1, 0.4, 0.2, 0.3]]))
    squares = torch.tensor([[0.01, 0.16, 0.04, 0.09]])
    assert_close(Sampling(0.5).probabilities(LOGITS), squares / squares.sum())


@pytest.mark.parametrize(
    ("top_k", "top_p", "expected"),
    [
        (1, None, [0, 1, 0, 0]),
        (2, None, [0, 4 / 7, 0, 3 / 7]),
        (9, None, [0.1, 0.4, 0.2, 0.3]),
        (None, 0.39, [0, 1, 0, 0]),
        (None, 0.41, [0, 4 / 7, 0, 3 / 7]),
        (None, 0.69, [0, 4 / 7, 0, 3 / 7]),
        (None, 0.71, [0, 4 / 9, 2 / 9, 3 / 9]),
        (None, 1.0, [0.1, 0.4, 0.2, 0.3]),
        (3, 0.7, [0, 4 / 7, 0, 3 / 7]),
        (2, 0.5, [0, 1, 0, 0]),
    ],
)
def test_top_k_and_top_p_keep_the_likeliest(
    top_k: int | None, top_p: float | None, expected: list[float]
) -> None:
    assert_close(
        Sampling(1.0, top_k, top_p).probabilities(LOGITS),
        torch.tensor([expected], dtype=torch.float32),
    )


def test_samples_follow_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = Sampling(1.0, top_k=3).choose(LOGITS.expand(4000, 4), [generator] * 4000)
    counts = Counter(draws.tolist())
    # Five standard deviations of a binomial distribution.
    for token, share in {1: 4 / 9, 2: 2 / 9, 3: 3 / 9}.items():
        assert abs(counts[token] / 4000 - share) < 5 * (share * (1 - share) / 4000) ** 0.5
    assert counts[0] == 0


def test_temperature_zero_is_the_limit_of_low_temperatures() -> None:
    logits = torch.randn(5, 50)
    generators = [torch.Generator().manual_seed(b) for b in range(5)]
    cold = Sampling(1e-3).choose(logits, generators)
    assert torch.equal(Sampling().choose(logits, generators), cold)


def test_the_cache_may_be_exactly_as_large_as_needed() -> None:
    model = tiny_decoder()
    assert mqa.generate(model, PROMPTS, 5, capacity=11) == mqa.generate(model, PROMPTS, 5)
    longest = mqa.generate(model, [random_tokens(60).tolist()], 5, stop_tokens=())
    assert len(longest[0]) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 10}, r"at least 11 slots .* \(7 tokens\) and 5 new tokens, got 10"),
        ({"max_new_tokens": 59}, r"capacity in \[1, 64\] \(max_position\), .* capacity 65"),
        ({"max_new_tokens": 0}, "expected max_new_tokens >= 1, got 0"),
        ({"temperature": -1.0}, "expected a finite temperature >= 0, got -1.0"),
        ({"temperature": float("nan")}, "expected a finite temperature >= 0, got nan"),
        ({"top_k": 0}, "expected top_k >= 1, got 0"),
        ({"top_p": 0.0}, r"expected top_p in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"expected top_p in \(0, 1\], got 1.5"),
        ({"prompts": []}, "expected at least one prompt, got none"),
        ({"prompts": [[1], []]}, "expected at least one token in prompt 1, got none"),
        ({"prompts": [[1, 89]]}, r"expected tokens in \[0, 89\), got 89 in prompt 0"),
        ({"prompts": [[1], [-1]]}, r"expected tokens in \[0, 89\), got -1 in prompt 1"),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, Any], message: str) -> None:
    arguments = {"prompts": PROMPTS, "max_new_tokens": 5} | arguments
    with pytest.raises(ValueError, match=message):
        mqa.generate(tiny_decoder(), **arguments)
