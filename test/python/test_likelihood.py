"""Negative log-likelihood of a passage."""

import pytest
import torch

import mqa
from decoders import all_logits, random_tokens, tiny_decoder


@pytest.mark.parametrize("attention_impl", ["mqa", "torch"])
@pytest.mark.parametrize("chunk_size", [1, 7, 64])
def test_mean_over_all_but_the_first_token(chunk_size: int, attention_impl: str) -> None:
    model = tiny_decoder(attention_impl=attention_impl)
    tokens = random_tokens(40)
    log_probabilities = all_logits(model, tokens[None])[0].double().log_softmax(-1)
    expected = -sum(log_probabilities[t, tokens[t + 1]].item() for t in range(39)) / 39
    assert mqa.nll(model, tokens, chunk_size) == pytest.approx(expected, rel=1e-5)


def test_a_passage_as_long_as_the_context_fits_and_a_longer_one_does_not() -> None:
    model = tiny_decoder()
    assert mqa.nll(model, random_tokens(65)) > 0
    with pytest.raises(ValueError, match=r"capacity in \[1, 64\]"):
        mqa.nll(model, random_tokens(66))


@pytest.mark.parametrize("tokens", [torch.tensor([3]), torch.tensor([[3, 4, 5]])])
def test_bad_passages_are_refused(tokens: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected at least 2 tokens"):
        mqa.nll(tiny_decoder(), tokens)
