"""The KV cache's bookkeeping."""

import pytest
import torch

import mqa
from decoders import random_tokens, tiny_decoder


@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
def test_tensors_are_preallocated_per_layer_and_side(num_kv_heads: int) -> None:
    cache = mqa.KVCache(tiny_decoder(num_kv_heads=num_kv_heads), batch=3, capacity=10)
    assert [list(tensor.shape) for tensor in cache.tensors] == [[3, num_kv_heads, 10, 8]] * 4
    assert cache.nbytes == 2 * 2 * 3 * num_kv_heads * 10 * 8 * 4
    assert cache.lengths.tolist() == [0, 0, 0]


def test_tensors_stay_in_place_while_tokens_come_in() -> None:
    model = tiny_decoder()
    cache = mqa.KVCache(model, batch=1, capacity=10)
    before = [tensor.data_ptr() for tensor in cache.tensors]
    model(random_tokens(1, 4), cache.reserve(4), cache.tensors)
    assert [tensor.data_ptr() for tensor in cache.tensors] == before


def test_positions_follow_the_lengths_of_each_sequence() -> None:
    cache = mqa.KVCache(tiny_decoder(), batch=2, capacity=10)
    assert cache.reserve(5).tolist() == [0, 0]
    cache.advance(torch.tensor([5, 2]))
    assert cache.reserve(5).tolist() == [5, 2]
    cache.advance(1)
    assert cache.lengths.tolist() == [6, 3]


def test_a_full_cache_says_so() -> None:
    cache = mqa.KVCache(tiny_decoder(), batch=2, capacity=10)
    cache.advance(torch.tensor([1, 9]))
    assert cache.reserve(1).tolist() == [1, 9]
    with pytest.raises(ValueError, match=r"at most 10 tokens .* 9 in the cache and 2 new"):
        cache.reserve(2)
