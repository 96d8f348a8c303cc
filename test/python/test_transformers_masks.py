"""What reaches the attention function: lengths, patterns, refusals; compiled models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo.testing
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CompileConfig,
    DynamicCache,
    PhimoeConfig,
    PreTrainedModel,
    StaticCache,
)
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

import hf_models
import mqa.integrations.transformers
from mqa.integrations.transformers.attention import attention_forward

mqa.integrations.transformers.register()

BATCH, LENGTH, WINDOW = 2, 20, hf_models.WINDOW
ONES = torch.ones(BATCH, LENGTH, dtype=torch.int64)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def masks_of(model: PreTrainedModel, *args: Any, **kwargs: Any) -> list[torch.Tensor | None]:
    """The masks that the model's layers get in a call."""
    masks: list[torch.Tensor | None] = []

    def record(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        masks.append(kwargs["attention_mask"])

    layers = [
        m
        for n, m in model.named_modules()
        if n.endswith((".attn", ".self_attn", ".self_attention"))
    ]
    hooks = [m.register_forward_pre_hook(record, with_kwargs=True) for m in layers]
    with torch.no_grad():
        model(*args, **kwargs)
    for hook in hooks:
        hook.remove()
    assert len(masks) == 2  # one a layer
    return masks


def test_registering_twice_is_harmless():
    before = hf_models.model("llama-mqa", "mqa")(hf_models.tokens(1, 5)).logits
    mqa.integrations.transformers.register()
    assert hf_models.model("llama-mqa", "mqa")(hf_models.tokens(1, 5)).logits.equal(before)


@pytest.mark.parametrize("name", [n for n in hf_models.NAMES if not n.startswith("falcon")])
def test_plain_calls_have_no_mask(name):
    model, tokens = hf_models.model(name, "mqa"), hf_models.tokens(BATCH, LENGTH)
    cache = DynamicCache(config=model.config)
    for chunk in (tokens[:, :4], tokens[:, 4:7], tokens[:, 7:8]):
        seen = ONES[:, : cache.get_seq_length() + chunk.size(1)]
        assert masks_of(model, chunk, attention_mask=seen, past_key_values=cache) == [None, None]


def test_window_is_marked_by_the_dtype():
    model, tokens = hf_models.model("gemma3", "mqa"), hf_models.tokens(BATCH, LENGTH)
    windowed, full = masks_of(model, tokens)
    assert full is None
    assert windowed.dtype == torch.int64
    assert windowed.tolist() == [[[[LENGTH]]]] * BATCH


def test_padding_is_a_row_of_slots():
    mask = ONES.clone()
    mask[1, :3] = 0
    got, _ = masks_of(
        hf_models.model("llama-mqa", "mqa"), hf_models.tokens(BATCH, LENGTH), attention_mask=mask
    )
    assert got.dtype == torch.int32
    assert got[:, 0, 0].tolist() == [[LENGTH, *row] for row in mask.tolist()]


@pytest.mark.parametrize("name", ["llama-mqa", "falcon-new", "gemma3"])
def test_static_cache_has_lengths(name):
    model, tokens = hf_models.model(name, "mqa"), hf_models.tokens(BATCH, LENGTH)
    cache = StaticCache(config=model.config, max_cache_len=32)
    for chunk, length in ((tokens[:, :4], 4), (tokens[:, 4:7], 7), (tokens[:, 7:8], 8)):
        for mask in masks_of(model, chunk, past_key_values=cache):
            assert mask.tolist() == [[[[length]]]] * BATCH


def test_ring_of_a_sliding_layer_has_its_valid_slots():
    """The offset of each slot is a tensor: slot j holds position j + offset[j]."""
    config = hf_models.config("mistral")
    tokens = ONES.bool()
    tokens[1, :13] = False  # of positions 4 to 11, and 12 over 4
    got = mqa.integrations.transformers.masks.visible_keys(
        BATCH,
        1,
        WINDOW,
        torch.tensor(12),
        torch.tensor([8, 8, 8, 8, 8, 0, 0, 0]),
        attention_mask=tokens,
        config=config,
    )
    visible = [[1] * WINDOW, [0] * WINDOW]
    assert got[:, 0, 0].tolist() == [[WINDOW, *row] for row in visible]


@pytest.mark.parametrize("make", [create_causal_mask, create_sliding_window_causal_mask])
@pytest.mark.parametrize("pattern", ["or", "and", "packed"])
def test_other_patterns_are_masks_of_pairs(make, pattern):
    def same_half(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return query // 10 == key // 10

    positions = torch.arange(LENGTH).remainder(12)[None] if pattern == "packed" else None
    masks = []
    for implementation in ("mqa", "sdpa"):
        config = hf_models.config("mistral")
        config._attn_implementation = implementation
        masks.append(
            make(
                config,
                torch.empty(BATCH, LENGTH, 0),
                None if pattern == "packed" else ONES,
                past_key_values=None,
                position_ids=positions,
                **({} if pattern == "packed" else {f"{pattern}_mask_function": same_half}),
            )
        )
    assert masks[0].equal(masks[1])


@pytest.mark.parametrize("name", ["mistral", "falcon-alibi"])
@torch.no_grad()
def test_packed_sequences(name):
    positions = torch.cat([torch.arange(9), torch.arange(11)])[None].expand(BATCH, -1)
    tokens = hf_models.tokens(BATCH, LENGTH)
    got, want = (
        hf_models.model(name, how)(tokens, position_ids=positions, use_cache=False).logits
        for how in ("mqa", hf_models.REFERENCES[name])
    )
    torch.testing.assert_close(got, want, **CLOSE)


@torch.no_grad()
def test_mask_of_the_caller_says_everything():
    """Also about the window, which it need not respect."""
    tokens = hf_models.tokens(BATCH, LENGTH)
    mask = (torch.rand(BATCH, 1, LENGTH, LENGTH) < 0.5) | torch.eye(LENGTH, dtype=torch.bool)
    mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    got, want = (
        hf_models.model("mistral", how)(tokens, attention_mask=mask).logits
        for how in ("mqa", "eager")
    )
    torch.testing.assert_close(got, want, **CLOSE)


@pytest.mark.parametrize("name", ["llama-mqa", "falcon-alibi"])
@torch.no_grad()
def test_bidirectional(name):
    tokens, logits = hf_models.tokens(BATCH, LENGTH), []
    for how in ("mqa", hf_models.REFERENCES[name]):
        model = hf_models.model(name, how)
        model.config.is_causal = False
        logits.append(model(tokens, use_cache=False).logits)
    torch.testing.assert_close(*logits, **CLOSE)


def layer(**changes: Any) -> torch.nn.Module:
    """A layer of a model as the attention function sees it."""
    return hf_models.model("llama-mqa", "mqa").model.layers[0].self_attn


@torch.no_grad()
def test_eight_bit_keys_bring_their_scales():
    query = torch.randn(1, 4, 1, 16)
    keys = torch.randint(-127, 128, (2, 1, 1, 9, 16), dtype=torch.int8)
    scales = torch.rand(2, 1, 1, 9) / 50
    wide = keys * scales[..., None]
    key, value = keys[0], keys[1]
    key.mqa_scale, value.mqa_scale = scales[0], scales[1]
    got, _ = attention_forward(layer(), query, key, value, None)
    want = torch.nn.functional.scaled_dot_product_attention(query, wide[0], wide[1])
    torch.testing.assert_close(got, want.transpose(1, 2), **CLOSE)


def test_dropout_is_refused():
    model = hf_models.model("llama-mqa", "mqa").train()
    model.model.layers[0].self_attn.attention_dropout = 0.1
    with pytest.raises(NotImplementedError, match=r"LlamaAttention needs dropout .*=0\.1"):
        model(hf_models.tokens(1, 4))


def test_dropout_with_alibi_is_refused():
    model = hf_models.model("falcon-alibi", "mqa").train()
    model.transformer.h[0].self_attention.attention_dropout.p = 0.1
    with pytest.raises(NotImplementedError, match=r"FalconMQAAttention needs dropout"):
        model(hf_models.tokens(1, 4))


@pytest.mark.parametrize("name", ["llama-mqa", "falcon-new", "falcon-alibi"])
def test_attention_weights_are_refused(name):
    with pytest.raises(NotImplementedError, match="needs attention weights as an output"):
        hf_models.model(name, "mqa")(hf_models.tokens(1, 4), output_attentions=True)


@pytest.mark.parametrize("argument", ["position_bias", "head_mask", "indices", "block_indices"])
def test_unsupported_arguments_are_refused(argument):
    x = torch.zeros(1, 1, 2, 8)
    with pytest.raises(NotImplementedError, match=rf"LlamaAttention needs .*\({argument}\)"):
        attention_forward(layer(), x, x, x, None, **{argument: torch.zeros(2)})


def test_integer_mask_is_refused():
    with pytest.raises(RuntimeError, match=r"attn_mask.*bool"):
        hf_models.model("llama-mqa", "mqa")(
            hf_models.tokens(1, 4), attention_mask=torch.ones(1, 1, 4, 4, dtype=torch.int64)
        )


def test_model_with_an_attention_of_its_own_is_refused():
    config = BloomConfig(vocab_size=89, hidden_size=32, n_layer=1, n_head=4)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="mqa")
    with pytest.raises(NotImplementedError, match="no effect on BloomModel"):
        model(hf_models.tokens(1, 4))


def test_window_that_the_model_keeps_to_itself_is_refused():
    config = PhimoeConfig(
        **hf_models.GATED,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
        sliding_window=WINDOW,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="mqa")
    model(hf_models.tokens(1, WINDOW))  # hides nothing
    with pytest.raises(NotImplementedError, match="PhimoeAttention needs a sliding window"):
        model(hf_models.tokens(1, WINDOW + 1))


def test_alibi_with_static_cache_is_refused():
    model = hf_models.model("falcon-alibi", "mqa")
    with pytest.raises(NotImplementedError, match=r"ALiBi .* use a dynamic one"):
        model.generate(hf_models.tokens(1, 4), max_new_tokens=2, cache_implementation="static")


def compiling(**options: Any) -> CompileConfig:
    made = CompileConfig(fullgraph=True, backend="aot_eager", mode=None, **options)
    made._compile_all_devices = True  # generate compiles on accelerators only, if it is not told
    return made


@pytest.mark.parametrize("name", ["llama-mqa", "gemma3"])
def test_compiled_generate(name):
    torch._dynamo.reset()
    prompts = {"inputs": hf_models.tokens(BATCH, 10), "attention_mask": ONES[:, :10].clone()}
    prompts["attention_mask"][0, :2] = 0
    got = hf_models.model(name, "mqa").generate(
        **prompts,
        max_new_tokens=6,
        cache_implementation="static",
        compile_config=compiling(),
    )
    want = hf_models.model(name, "eager").generate(**prompts, max_new_tokens=6)
    assert got.tolist() == want.tolist()


@pytest.mark.parametrize("name", ["llama-mqa", "mistral"])
@torch.no_grad()
def test_compiled_step_that_makes_its_mask(name):
    torch._dynamo.reset()
    model, tokens = hf_models.model(name, "mqa"), hf_models.tokens(BATCH, LENGTH)
    cache = StaticCache(config=model.config, max_cache_len=32)
    model(tokens[:, :4], past_key_values=cache)
    count = torch._dynamo.testing.CompileCounter()
    step = torch.compile(model, fullgraph=True, backend=count)
    logits = [step(x, past_key_values=cache).logits for x in tokens[:, 4:10].split(1, dim=1)]
    want = hf_models.model(name, "eager")(tokens[:, :10]).logits[:, 4:]
    torch.testing.assert_close(torch.cat(logits, 1), want, **CLOSE)
    assert (
        count.frame_count == {"llama-mqa": 1, "mistral": 3}[name]
    )  # a window: empty, in use, full
