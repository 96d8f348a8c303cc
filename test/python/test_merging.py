"""KV heads made one: what turns leave as it is, and what the methods find."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import mqa
from decoders import all_logits, random_tokens, tiny_decoder
from mqa.alignment import align, align_planes, share, share_planes
from mqa.kv_heads import KVHeads
from mqa.moments import moments_of_text

ROTARY: dict[str, Any] = {}
LEARNED: dict[str, Any] = {"positions": "learned", "qkv_bias": True, "norm": "layer"}


def random_turns(num_heads: int, head_dim: int) -> Tensor:
    """Orthogonal matrices `[num_heads, D, D]`."""
    return torch.linalg.qr(torch.randn(num_heads, head_dim, head_dim, dtype=torch.float64))[0]


def random_plane_turns(num_heads: int, head_dim: int) -> Tensor:
    """Those that turn each pair `(i, i + D / 2)`."""
    angles = torch.rand(num_heads, head_dim // 2, dtype=torch.float64) * 2 * math.pi
    cos, sin = torch.diag_embed(angles.cos()), torch.diag_embed(angles.sin())
    return torch.cat([torch.cat([cos, -sin], 2), torch.cat([sin, cos], 2)], 1)


def turned(model: mqa.Decoder) -> mqa.Decoder:
    """Every head in a random basis of its own."""
    turns = random_turns if model.config.positions == "learned" else random_plane_turns
    weights = dict(model.state_dict())
    for layer in range(model.config.num_layers):
        heads = KVHeads.read(weights, layer, model.config)
        keys, values = turns(len(heads.key), 8), random_turns(len(heads.key), 8)
        heads.turned(keys, values).write(weights, layer)
    return mqa.Decoder.from_weights(model.config, weights)


def in_order(model: mqa.Decoder, order: list[int]) -> mqa.Decoder:
    """The same model with its KV heads in another order."""
    weights = dict(model.state_dict())
    for layer in range(model.config.num_layers):
        heads = KVHeads.read(weights, layer, model.config)
        heads.reordered(torch.tensor(order)).write(weights, layer)
    return mqa.Decoder.from_weights(model.config, weights)


@pytest.mark.parametrize("architecture", [ROTARY, LEARNED])
def test_turns_and_another_order_change_no_logit(architecture: dict[str, Any]) -> None:
    model = tiny_decoder(num_kv_heads=3, **architecture)
    tokens = random_tokens(2, 30)
    expected = all_logits(model, tokens)
    assert_close(all_logits(turned(model), tokens), expected, atol=2e-5, rtol=1e-5)
    assert_close(all_logits(in_order(model, [2, 0, 1]), tokens), expected, atol=2e-5, rtol=1e-5)


def test_what_align_finds_changes_no_logit() -> None:
    model = tiny_decoder(num_kv_heads=6)
    weights = dict(model.state_dict())
    for layer, moments in enumerate(moments_of_text(model, random_tokens(2, 40))):
        turns = align_planes(moments.keys), align(moments.values)
        KVHeads.read(weights, layer, model.config).turned(*turns).write(weights, layer)
    tokens = random_tokens(2, 30)
    logits = all_logits(mqa.Decoder.from_weights(model.config, weights), tokens)
    assert_close(logits, all_logits(model, tokens), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", [ROTARY, LEARNED])
@pytest.mark.parametrize("method", ["svd", "align"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_turned_copies_of_a_head_become_that_head(
    architecture: dict[str, Any], method: str, calibrated: bool
) -> None:
    model = tiny_decoder(num_kv_heads=2, **architecture)
    copies = turned(mqa.convert(model, 6))
    text = random_tokens(2, 40) if calibrated else None
    tokens = random_tokens(2, 30)
    expected = all_logits(model, tokens)
    found = mqa.convert(copies, 2, method, calibration=text)
    assert_close(all_logits(found, tokens), expected, atol=5e-5, rtol=1e-4)
    assert (all_logits(mqa.convert(copies, 2, "mean"), tokens) - expected).abs().max() > 0.5


def test_similar_heads_are_found_wherever_they_are() -> None:
    model = tiny_decoder(num_kv_heads=3)
    copies = in_order(turned(mqa.convert(model, 6)), [0, 3, 4, 1, 5, 2])
    tokens = random_tokens(2, 30)
    expected = all_logits(model, tokens)
    found = mqa.convert(copies, 3, "align", groups="similar")
    assert_close(all_logits(found, tokens), expected, atol=5e-5, rtol=1e-4)
    neighbours = mqa.convert(copies, 3, "align")
    assert (all_logits(neighbours, tokens) - expected).abs().max() > 0.5


@pytest.mark.parametrize("method", ["svd", "align"])
@pytest.mark.parametrize("architecture", [ROTARY, LEARNED])
def test_shared_heads_have_the_norm_of_single_ones(
    method: str, architecture: dict[str, Any]
) -> None:
    model, text = tiny_decoder(num_kv_heads=6, **architecture), random_tokens(4, 50)

    def energy(model: mqa.Decoder) -> Tensor:
        moments = moments_of_text(model, text)[0]  # what enters layer 0 is the same in both
        sums = [m.flatten(2).flatten(0, 1).trace() for m in (moments.keys, moments.values)]
        return torch.stack(sums) / model.config.num_kv_heads

    merged = mqa.convert(model, 1, method, calibration=text)
    assert_close(energy(merged), energy(model), rtol=1e-5, atol=0)
    assert (energy(mqa.convert(model, 1)) < 0.5 * energy(model)).all()


def test_the_first_head_is_kept() -> None:
    model = tiny_decoder(num_kv_heads=6)
    name = "layers.1.self_attn.v_proj.weight"
    first = model.state_dict()[name].view(2, 3, 8, 48)[:, 0].flatten(0, 1)
    assert torch.equal(mqa.convert(model, 2, "first").state_dict()[name], first)


@pytest.mark.parametrize("method", ["svd", "align"])
def test_keys_that_are_normalised_differ_by_signs_and_norm(method: str) -> None:
    model = tiny_decoder(num_kv_heads=2, qk_norm=True, windows=(7, 0), norm="rms_float32")
    weights = dict(mqa.convert(model, 6).state_dict())
    for layer in range(2):
        heads = KVHeads.read(weights, layer, tiny_decoder(num_kv_heads=6).config)
        signs = torch.randint(2, (6, 4)).double() * 2 - 1
        turns = torch.diag_embed(torch.cat([signs, signs], 1))
        heads = heads.turned(turns, random_turns(6, 8))
        norms = torch.rand(6, 1, 1, dtype=torch.float64) + 0.5
        replace(heads, key=heads.key * norms).write(weights, layer)
    copies = mqa.Decoder.from_weights(replace(model.config, num_kv_heads=6), weights)
    tokens = random_tokens(2, 30)
    expected = all_logits(model, tokens)
    assert_close(all_logits(copies, tokens), expected, atol=1e-3, rtol=1e-3)
    found = mqa.convert(copies, 2, method, calibration=random_tokens(2, 40))
    assert_close(all_logits(found, tokens), expected, atol=1e-3, rtol=1e-3)
    assert (all_logits(mqa.convert(copies, 2, "mean"), tokens) - expected).abs().max() > 0.5


@pytest.mark.parametrize("method", ["svd", "align"])
def test_the_size_of_keys_that_are_normalised_does_not_matter(method: str) -> None:
    model, tokens = tiny_decoder(num_kv_heads=2, qk_norm=True), random_tokens(2, 30)
    weights = dict(model.state_dict())
    heads = KVHeads.read(weights, 1, model.config)
    larger = torch.tensor([5.0, 1.0]).double()[:, None, None]
    replace(heads, key=heads.key * larger).write(weights, 1)
    other = mqa.Decoder.from_weights(model.config, weights)
    found, expected = (all_logits(mqa.convert(m, 1, method), tokens) for m in (other, model))
    assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_moments_follow_the_order_of_heads() -> None:
    model, text, order = tiny_decoder(num_kv_heads=3), random_tokens(2, 40), [2, 0, 1]
    for moments, expected in zip(
        moments_of_text(model, text), moments_of_text(in_order(model, order), text), strict=True
    ):
        found = moments.reordered(torch.tensor(order))
        for name in ("keys", "values", "queries", "outputs"):
            assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("share_heads", [share, share_planes])
def test_what_matters_more_is_kept_better(share_heads: Callable[..., tuple[Tensor, ...]]) -> None:
    heads = torch.randn(3, 8, 50, dtype=torch.float64)  # of 50 tokens
    moments = torch.einsum("iat,jbt->iajb", heads, heads)

    def errors(weights: list[float]) -> Tensor:
        eyes = torch.tensor(weights)[:, None, None].double() * torch.eye(8)
        into, back = share_heads(moments, eyes)
        return (back.mT @ (into @ heads).sum(0) - heads).square().sum((1, 2))

    alike = errors([1, 1, 1])
    assert alike.sum() < 0.9 * heads.square().sum()
    one, other = errors([1e4, 1, 1]), errors([1, 1, 1e4])
    assert one[0] < 0.01 * alike[0]
    assert other[2] < 0.01 * alike[2]
    assert (one.sum() > alike.sum()) & (other.sum() > alike.sum())  # nothing beats equal weights


def test_moments_are_those_of_projections() -> None:
    model, text = tiny_decoder(num_kv_heads=2, num_layers=1), random_tokens(3, 20)
    attention = model.layers[0].self_attn
    inputs = model.layers[0].input_layernorm(model.embed(text, torch.arange(20).expand(3, 20)))
    (moments,) = moments_of_text(model, text)
    queries = attention.q_proj(inputs).double().view(-1, 2, 3, 8)
    assert_close(
        moments.queries, torch.einsum("nhra,nhrb->hab", queries, queries), rtol=1e-4, atol=1e-3
    )
    outputs = attention.o_proj.weight.double().view(-1, 2, 3, 8)
    assert_close(moments.outputs, torch.einsum("nhra,nhrb->hab", outputs, outputs))
    for got, projection in ((moments.keys, attention.k_proj), (moments.values, attention.v_proj)):
        heads = projection(inputs).double().view(-1, 2, 8)
        assert_close(got, torch.einsum("nia,njb->iajb", heads, heads), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "median"}, r"expected method to be one of .*'align'\), got 'median'"),
        ({"groups": "random"}, r"expected groups to be one of .*'similar'\), got 'random'"),
        (
            {"calibration": torch.zeros(1, 7, dtype=torch.int64)},
            r"expected calibration \[B, T\] of at least 8 tokens \(head_dim\), got shape \[1, 7\]",
        ),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mqa.convert(tiny_decoder(num_kv_heads=2), 1, **options)
