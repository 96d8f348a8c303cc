"""The decoder against transformers, against its plain PyTorch attention, and against itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

import mqa
from decoders import (
    ARCHITECTURES,
    VOCAB_SIZE,
    all_logits,
    random_tokens,
    sharpen,
    tiny_config,
    tiny_decoder,
)
from mqa.config import RopeScaling

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def tiny_llama(**changes: Any) -> LlamaForCausalLM:
    sizes: dict[str, Any] = {
        "num_hidden_layers": 2,
        "hidden_size": 48,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 64,
    }
    llama = LlamaForCausalLM(LlamaConfig(**sizes | changes)).eval().requires_grad_(False)
    sharpen(llama)
    return llama


@pytest.mark.parametrize("attention_impl", ["mqa", "torch"])
@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 2},
        {"num_key_value_heads": 1},
        {"head_dim": 16, "tie_word_embeddings": True, "rms_norm_eps": 1e-2},
        {"rope_parameters": LLAMA3_ROPE},
    ],
    ids=["mha", "gqa", "mqa", "wide-tied", "llama3-rope"],
)
def test_logits_equal_those_of_transformers(
    changes: dict[str, Any], attention_impl: str, tmp_path: Path
) -> None:
    llama = tiny_llama(**changes)
    llama.save_pretrained(tmp_path)
    model = mqa.load_safetensors(tmp_path).with_attention_impl(attention_impl)
    tokens = random_tokens(3, 40)
    assert_close(all_logits(model, tokens), llama(tokens).logits, atol=2e-4, rtol=1e-4)


def test_generated_tokens_equal_those_of_transformers(tmp_path: Path) -> None:
    llama = tiny_llama()
    llama.save_pretrained(tmp_path)
    tokens = random_tokens(1, 7)
    expected = llama.generate(tokens, max_new_tokens=40, do_sample=False, eos_token_id=None)
    model = mqa.load_safetensors(tmp_path)
    assert mqa.generate(model, tokens.tolist(), 40, stop_tokens=()) == [expected[0, 7:].tolist()]


@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
def test_both_attentions_agree_on_a_ragged_batch(num_kv_heads: int) -> None:
    model = tiny_decoder(num_kv_heads=num_kv_heads)
    plain = model.with_attention_impl("torch")
    tokens, lengths = random_tokens(3, 9), torch.tensor([9, 1, 5])
    caches = model.new_cache(3, 16), plain.new_cache(3, 16)
    assert_close(
        model.prefill(tokens, lengths, caches[0]),
        plain.prefill(tokens, lengths, caches[1]),
        atol=1e-4,
        rtol=1e-4,
    )
    for step in range(5):
        new = random_tokens(3)
        assert_close(
            model.decode(new, lengths + step, caches[0]),
            plain.decode(new, lengths + step, caches[1]),
            atol=1e-4,
            rtol=1e-4,
        )


@pytest.mark.parametrize("attention_impl", ["mqa", "torch"])
def test_ragged_rows_get_the_logits_they_get_alone(attention_impl: str) -> None:
    model = tiny_decoder(attention_impl=attention_impl)
    tokens, lengths = random_tokens(3, 9), torch.tensor([4, 9, 1])
    cache = model.new_cache(3, 12)
    together = model.prefill(tokens, lengths, cache)
    new = random_tokens(3)
    together_next = model.decode(new, lengths, cache)
    for b, length in enumerate(lengths.tolist()):
        alone = all_logits(model, torch.cat([tokens[b, :length], new[b : b + 1]])[None])[0]
        assert_close(together[b], alone[-2], atol=1e-4, rtol=1e-4)
        assert_close(together_next[b], alone[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention_impl", ["mqa", "torch"])
def test_padding_tokens_do_not_matter(attention_impl: str) -> None:
    model = tiny_decoder(attention_impl=attention_impl)
    tokens, lengths = random_tokens(2, 6), torch.tensor([6, 2])
    other = tokens.clone()
    other[1, 2:] = random_tokens(4)
    assert not torch.equal(tokens, other)
    logits = [model.prefill(t, lengths, model.new_cache(2, 8)) for t in (tokens, other)]
    assert torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("attention_impl", ["mqa", "torch"])
def test_prefill_in_chunks_equals_prefill_at_once(attention_impl: str) -> None:
    model = tiny_decoder(attention_impl=attention_impl)
    tokens = random_tokens(2, 23)
    cache = model.new_cache(2, 30)
    chunks = [
        model(chunk, torch.full((2,), start), cache)
        for start, chunk in zip((0, 7, 14, 21), tokens.split(7, dim=1), strict=True)
    ]
    assert_close(torch.cat(chunks, 1), all_logits(model, tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
def test_whole_sequences_without_a_cache_have_the_same_logits_and_a_gradient(
    num_kv_heads: int,
) -> None:
    tokens = random_tokens(2, 23)
    model = tiny_decoder(num_kv_heads=num_kv_heads)
    expected = all_logits(model, tokens)
    plain = model.with_attention_impl("torch")
    for differentiable in (model, plain):
        differentiable.requires_grad_(True)
        logits = differentiable.sequence_logits(tokens)
        assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        logits.square().mean().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert ours is not theirs
        assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)


def test_chunks_of_different_lengths_continue_a_ragged_batch() -> None:
    model = tiny_decoder()
    tokens = random_tokens(2, 9)
    cache = model.new_cache(2, 12)
    model.prefill(tokens[:, :5], torch.tensor([2, 5]), cache)
    chunk = torch.stack([tokens[0, 2:6], torch.tensor([tokens[1, 5], 0, 0, 0])])
    logits = model.extend(chunk, torch.tensor([4, 1]), torch.tensor([2, 5]), cache)
    whole = all_logits(model, tokens)
    assert_close(logits, torch.stack([whole[0, 5], whole[1, 5]]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_decide_the_dtype(dtype: torch.dtype) -> None:
    model = tiny_decoder().to(dtype)
    exact = tiny_decoder()
    exact.load_state_dict(model.state_dict())
    tokens = random_tokens(2, 20)
    logits = all_logits(model, tokens)
    assert logits.dtype == torch.float32
    assert {tensor.dtype for tensor in model.new_cache(1, 4)} == {dtype}
    # Two layers of rounding, on logits of standard deviation 1.
    spread = (logits - all_logits(exact, tokens)).abs().mean()
    assert spread < 20 * torch.finfo(dtype).eps


def test_rotary_embedding_is_computed_in_float32_whatever_the_weights() -> None:
    slots = torch.arange(60_000, 60_010)[None]
    model = tiny_decoder()
    cos, sin = model.rotaries[0](slots)
    low_cos, low_sin = model.to(torch.bfloat16).rotaries[0](slots)
    assert torch.equal(cos, low_cos)
    assert torch.equal(sin, low_sin)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_scripted_decoder_has_the_bits_of_an_eager_one(name: str) -> None:
    model = tiny_decoder(**ARCHITECTURES[name])
    scripted = torch.jit.script(model)
    tokens, lengths = random_tokens(2, 9), torch.tensor([9, 4])
    for dtype in ("auto", "int8", "float8_e4m3fn"):
        caches = model.new_cache(2, 12, dtype), scripted.new_cache(2, 12, dtype)
        for step in (
            lambda m, cache: m.prefill(tokens, lengths, cache),
            lambda m, cache: m.decode(tokens[:, 0], lengths, cache),
        ):
            assert torch.equal(step(scripted, caches[1]), step(model, caches[0]))


@torch._dynamo.config.patch(error_on_recompile=True)
@pytest.mark.parametrize(("name", "num_layers"), [("gemma3", 2), ("gpt_bigcode", 1)])
def test_other_architectures_compile_to_one_graph(name: str, num_layers: int) -> None:
    torch.compiler.reset()
    model = tiny_decoder(**ARCHITECTURES[name], num_kv_heads=1, num_layers=num_layers)
    caches = [[x.zero_() for x in model.new_cache(2, 12)] for _ in range(2)]
    compiled = torch.compile(model.extend, fullgraph=True, dynamic=True, backend="aot_eager")
    for extend, cache in zip((model.extend, compiled), caches, strict=True):
        tokens = torch.arange(8).view(2, 4)
        cache.append(extend(tokens, torch.tensor([4, 2]), torch.tensor([3, 0]), cache))
    for expected, actual in zip(*caches, strict=True):
        assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_positions_that_were_not_learned_are_refused() -> None:
    model = tiny_decoder(**ARCHITECTURES["gpt_bigcode"])
    with pytest.raises(ValueError, match=r"expected positions below 64 \(max_position\), got 64"):
        model.sequence_logits(random_tokens(1, 65))


@pytest.mark.parametrize("numbers", [(8.0, 1.0), (8.0, None, 4.0), (0.0,)])
def test_incomplete_scalings_of_the_rotary_embedding_are_refused(numbers: tuple[Any]) -> None:
    with pytest.raises(ValueError, match=r"RopeScaling: expected (all or none|factor > 0)"):
        RopeScaling(*numbers)


def test_a_prompt_longer_than_the_cache_is_refused_before_anything_is_written() -> None:
    model = tiny_decoder()
    cache = model.new_cache(2, 4)
    for tensor in cache:
        tensor.fill_(7.0)
    with pytest.raises(ValueError, match=r"kv_append.*positions"):
        model.prefill(random_tokens(2, 5), torch.tensor([5, 2]), cache)
    with pytest.raises(ValueError, match=r"kv_append.*positions"):
        model.decode(random_tokens(2), torch.tensor([0, 4]), cache)
    assert all(bool((tensor == 7.0).all()) for tensor in cache)


@pytest.mark.parametrize("lengths", [[0, 3], [3, 4]])
def test_lengths_outside_the_tokens_are_refused(lengths: list[int]) -> None:
    model = tiny_decoder()
    with pytest.raises(ValueError, match=r"expected lengths in \[1, 3\]"):
        model.prefill(random_tokens(2, 3), torch.tensor(lengths), model.new_cache(2, 4))


@pytest.mark.parametrize(("batch", "capacity"), [(0, 4), (1, 0), (1, 65)])
def test_impossible_caches_are_refused(batch: int, capacity: int) -> None:
    with pytest.raises(ValueError, match=r"new_cache: expected .* capacity in \[1, 64\]"):
        tiny_decoder().new_cache(batch, capacity)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "expected num_layers > 0, got 0"),
        ({"hidden_size": 4.5}, "expected hidden_size > 0, got 4.5"),
        ({"rms_norm_eps": "1e-5"}, "expected rms_norm_eps > 0, got '1e-5'"),
        ({"rope_theta": float("nan")}, "expected rope_theta > 0, got nan"),
        ({"num_kv_heads": 4}, "expected num_kv_heads to divide num_heads = 6, got 4"),
        ({"head_dim": 7}, "expected an even head_dim, got 7"),
        ({"attention_impl": "flash"}, "expected attention_impl to be one of"),
        ({"norm": "batch"}, r"expected norm to be one of \('rms', .*, got 'batch'"),
        ({"windows": (5,)}, "expected windows to be empty or 2 numbers >= 0.*, got \\(5,\\)"),
        ({"windows": (5, -1)}, r"expected windows .*, got \(5, -1\)"),
        ({"attention_scale": -1.0}, "expected attention_scale > 0, got -1.0"),
        ({"local_rope_theta": "big"}, "expected local_rope_theta > 0, got 'big'"),
        (
            {"output_norms": True, "block": "parallel"},
            "expected block 'sequential' with output_norms, got 'parallel'",
        ),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)
