"""Blocks of tokens against single steps, bit by bit."""

from typing import Any

import pytest
import torch

import mqa
from decoders import ARCHITECTURES, random_tokens, tiny_decoder


@pytest.mark.parametrize(
    ("dtype", "cache_dtype"), [(torch.float32, "int8"), (torch.bfloat16, "auto")]
)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_blocks_have_the_bits_of_steps(name: str, dtype: torch.dtype, cache_dtype: str) -> None:
    model = tiny_decoder(**ARCHITECTURES[name]).to(dtype)
    verifier = mqa.with_exact_blocks(model, 12)
    lengths, new = torch.tensor([11, 4]), random_tokens(2, 6)
    cache = [tensor.zero_() for tensor in model.new_cache(2, 20, cache_dtype)]
    model.prefill(random_tokens(2, 11), lengths, cache)
    alone = [[tensor[b : b + 1].clone() for tensor in cache] for b in range(2)]
    block = verifier(new, lengths, cache)
    for b in range(2):
        steps = [
            model.decode(new[b : b + 1, t], lengths[b : b + 1] + t, alone[b]) for t in range(6)
        ]
        assert torch.equal(block[b], torch.cat(steps))
        for together, single in zip(cache, alone[b], strict=True):
            assert torch.equal(together[b].float(), single[0].float())


def test_a_decoder_that_is_exact_as_it_is_comes_back() -> None:
    model = tiny_decoder()
    assert mqa.with_exact_blocks(model, 1) is model


def test_the_weights_are_shared() -> None:
    model = tiny_decoder()
    verifier = mqa.with_exact_blocks(model, 4)
    assert [p.data_ptr() for p in verifier.parameters()] == [
        p.data_ptr() for p in model.parameters()
    ]


@pytest.mark.parametrize(
    ("changes", "num_tokens", "message"),
    [
        ({"attention_impl": "torch"}, 4, "expected a model with attention_impl 'mqa', got 'torch'"),
        ({}, 0, r"expected num_tokens in \[1, 64\] \(max_position\), got 0"),
        ({}, 65, r"expected num_tokens in \[1, 64\] \(max_position\), got 65"),
    ],
)
def test_impossible_blocks_are_refused(
    changes: dict[str, Any], num_tokens: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mqa.with_exact_blocks(tiny_decoder(**changes), num_tokens)
