"""Conversion between numbers of KV heads."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import mqa
from decoders import ARCHITECTURES, all_logits, random_tokens, tiny_decoder


def heads(model: mqa.Decoder, projection: str) -> Tensor:
    """The weights `[H_kv, D, hidden_size]` of layer 1's projection."""
    weight = model.get_parameter(f"layers.1.self_attn.{projection}.weight")
    return weight.view(model.config.num_kv_heads, 8, 48)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (1, 6), (2, 6), (3, 6), (2, 2)])
def test_more_heads_compute_the_same(before: int, after: int) -> None:
    model = tiny_decoder(num_kv_heads=before)
    wider = mqa.convert(model, after)
    assert wider.config.num_kv_heads == after
    for projection in ("k_proj", "v_proj"):
        for head in range(after):
            source = heads(model, projection)[head * before // after]
            assert torch.equal(heads(wider, projection)[head], source)
    tokens = random_tokens(2, 30)
    assert_close(all_logits(wider, tokens), all_logits(model, tokens), atol=1e-5, rtol=1e-5)
    prompts = tokens.tolist()
    assert mqa.generate(wider, prompts, 20) == mqa.generate(model, prompts, 20)


@pytest.mark.parametrize(("before", "after"), [(6, 3), (6, 2), (6, 1), (2, 1)])
def test_fewer_heads_are_means_of_neighbours(before: int, after: int) -> None:
    model = tiny_decoder(num_kv_heads=before)
    narrower = mqa.convert(model, after)
    group = before // after
    for projection in ("k_proj", "v_proj"):
        old = heads(model, projection)
        for head in range(after):
            mean = sum(old[head * group + i] for i in range(group)) / group
            assert_close(heads(narrower, projection)[head], mean)
    assert torch.isfinite(all_logits(narrower, random_tokens(1, 9))).all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_more_heads_compute_the_same_in_every_architecture(name: str) -> None:
    model = tiny_decoder(**ARCHITECTURES[name], num_kv_heads=2)
    tokens = random_tokens(2, 30)
    wider = mqa.convert(model, 6)
    assert_close(all_logits(wider, tokens), all_logits(model, tokens), atol=1e-5, rtol=1e-5)


def test_biases_of_fewer_heads_are_means_too() -> None:
    model = tiny_decoder(qkv_bias=True, num_kv_heads=6)
    bias = model.layers[1].self_attn.v_proj.bias
    pooled = mqa.convert(model, 2).layers[1].self_attn.v_proj.bias
    assert_close(pooled, bias.view(2, 3, 8).mean(1).flatten())


def test_pooling_rounds_bfloat16_once() -> None:
    model = tiny_decoder(num_kv_heads=6).to(torch.bfloat16)
    pooled = heads(mqa.convert(model, 1), "k_proj")[0]
    assert torch.equal(pooled, heads(model, "k_proj").double().mean(0).to(torch.bfloat16))


def test_down_undoes_up() -> None:
    model = tiny_decoder(num_kv_heads=2)
    back = mqa.convert(mqa.convert(model, 6), 2)
    for name, weight in model.state_dict().items():
        assert_close(back.state_dict()[name], weight)


def test_the_old_model_keeps_its_own_weights() -> None:
    model = tiny_decoder()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    new = mqa.convert(model, 1)
    for weight in new.parameters():
        weight.zero_()
    assert model.config.num_kv_heads == 2
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (3, 2, "divides 3 or is a multiple of it, got 2"),
        (2, 4, "expected num_kv_heads to divide num_heads = 6, got 4"),
        (2, 12, "expected num_kv_heads to divide num_heads = 6, got 12"),
        (2, 0, "expected num_kv_heads > 0, got 0"),
    ],
)
def test_impossible_numbers_of_heads_are_refused(before: int, after: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mqa.convert(tiny_decoder(num_kv_heads=before), after)
