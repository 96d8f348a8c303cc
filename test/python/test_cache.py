"""The KV cache's bookkeeping."""

import pytest
import torch

import mqa
from decoders import ARCHITECTURES, all_logits, random_tokens, tiny_decoder


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


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_scales_of_8_bit_caches_follow_the_elements(dtype: str) -> None:
    cache = mqa.KVCache(tiny_decoder(num_kv_heads=2), batch=3, capacity=10, dtype=dtype)
    elements, scales = cache.tensors[:4], cache.tensors[4:]
    assert [list(tensor.shape) for tensor in elements] == [[3, 2, 10, 8]] * 4
    assert {tensor.dtype for tensor in elements} == {getattr(torch, dtype)}
    assert [list(tensor.shape) for tensor in scales] == [[3, 2, 10]] * 4
    assert {tensor.dtype for tensor in scales} == {torch.float32}
    assert cache.nbytes == 2 * 2 * 3 * 2 * 10 * (8 + 4)


@pytest.mark.parametrize(("dtype", "error"), [("int8", 0.01), ("float8_e4m3fn", 0.06)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_8_bit_caches_cost_little_precision(name: str, dtype: str, error: float) -> None:
    model = tiny_decoder(**ARCHITECTURES[name])
    tokens, start = random_tokens(2, 30), torch.zeros(2, dtype=torch.int64)
    exact = all_logits(model, tokens)
    cache = model.new_cache(2, 30, dtype)
    for tensor in cache:
        tensor.view(torch.uint8).fill_(0x7F)  # what is read without having been written shows
    logits = model(tokens, start, cache)
    assert 0 < (logits - exact).abs().mean() < error * exact.std()
    for layer in range(2):  # every scale is in its place
        key, scale = cache[2 * layer].float(), cache[4 + 2 * layer]
        assert (key.abs().amax(-1) * scale).isfinite().all()


def test_8_bit_caches_need_our_attention() -> None:
    model = tiny_decoder(attention_impl="torch")
    with pytest.raises(ValueError, match="cache of int8 needs attention_impl mqa, got torch"):
        model.new_cache(1, 4, "int8")
    with pytest.raises(ValueError, match="expected dtype auto, int8 or float8_e4m3fn, got int4"):
        tiny_decoder().new_cache(1, 4, "int4")


@pytest.mark.parametrize("dtype", ["auto", "int8", "float8_e4m3fn"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_keys_change_no_bit(name: str, dtype: str) -> None:
    model = tiny_decoder(**ARCHITECTURES[name])
    prompt, step = random_tokens(2, 21), random_tokens(2, 1)
    results = []
    for packed_keys in (False, True):
        cache = model.new_cache(2, 30, dtype, packed_keys)
        for tensor in cache:
            tensor.view(torch.uint8).fill_(0x7F)
        lengths = torch.tensor([21, 13])
        logits = model.prefill(prompt, lengths, cache)
        results.append((logits, model.decode(step[:, 0], lengths, cache)))
    for in_order, packed in zip(*results, strict=True):
        assert torch.equal(packed, in_order)


def test_packed_keys_lie_in_groups_of_16_slots() -> None:
    model = tiny_decoder(num_kv_heads=2)
    cache = mqa.KVCache(model, batch=3, capacity=17, dtype="int8", packed_keys=True)
    assert [list(tensor.shape) for tensor in cache.tensors[:2]] == [[3, 2, 2, 8, 16], [3, 2, 32, 8]]
    assert [list(tensor.shape) for tensor in cache.tensors[4:]] == [[3, 2, 32]] * 4
    assert cache.capacity == 17


def test_packed_keys_need_our_attention_on_cpu() -> None:
    with pytest.raises(
        ValueError, match="a cache with packed keys needs attention_impl mqa, got torch"
    ):
        tiny_decoder(attention_impl="torch").new_cache(1, 4, packed_keys=True)
    with pytest.raises(ValueError, match="packed keys need a model on cpu, got meta"):
        tiny_decoder().to("meta").new_cache(1, 4, packed_keys=True)
