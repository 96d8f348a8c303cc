"""MQACache in transformers: the same tokens as with the cache that keeps everything as it is."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import CompileConfig, DynamicCache, PreTrainedModel

import hf_models
import mqa
from hf_models import WINDOW
from mqa.integrations.transformers import MQACache, register

BOTH_KINDS = ["gemma3", "gpt_oss"]  # full and sliding layers
NAMES = [*BOTH_KINDS, "mistral", "llama-mqa", "gpt_bigcode-mqa", "deepseek_v3"]
EIGHT_BIT = [torch.int8, torch.float8_e4m3fn]
NEW_TOKENS = 20
ROOM = 64
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam": {"num_beams": 3},
    "chunked": {"prefill_chunk_size": 5},
}
MORE_MODES = ["beam", "chunked"]


@pytest.fixture(scope="module", autouse=True)
def _mqa_is_registered() -> None:
    register()


@functools.cache
def model(name: str, attn: str) -> PreTrainedModel:
    return hf_models.model(name, attn)


def ragged_prompts() -> dict[str, Tensor]:
    """Left-padded, one row with less than a window of tokens, one with more, one full."""
    tokens = hf_models.tokens(3, 13)
    mask = torch.ones_like(tokens)
    mask[0, :10] = 0
    mask[1, :4] = 0
    return {"input_ids": tokens * mask, "attention_mask": mask}


def repeating_prompt() -> dict[str, Tensor]:
    """What a prompt lookup finds candidates in."""
    tokens = hf_models.tokens(1, 13).repeat(1, 2)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


@torch.no_grad()
def generate(name: str, attn: str, cache: object, prompts: dict[str, Tensor], **how: Any) -> Any:
    return model(name, attn).generate(
        **prompts,
        past_key_values=cache,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **{"max_new_tokens": NEW_TOKENS, **how},
    )


@functools.cache
def expected(name: str, prompts: Callable[[], dict[str, Tensor]], **how: Any) -> Any:
    """With eager attention and the dynamic cache."""
    return generate(name, "eager", DynamicCache(config=config(name)), prompts(), **how)


def config(name: str) -> transformers.PreTrainedConfig:
    return model(name, "eager").config


def new_cache(name: str, attn: str, cache_dtype: Any = None, room: int = ROOM) -> MQACache:
    return MQACache(model(name, attn).config, room, cache_dtype)


def assert_same(got: Any, wanted: Any, atol: float = 1e-4) -> None:
    assert got.sequences.tolist() == wanted.sequences.tolist()
    torch.testing.assert_close(
        torch.stack(got.logits), torch.stack(wanted.logits), atol=atol, rtol=0
    )


def memory(cache: MQACache) -> list[Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


@pytest.mark.parametrize("attn", ["eager", "mqa"])
@pytest.mark.parametrize(
    ("name", "mode"),
    [*((name, "greedy") for name in NAMES), *itertools.product(["gemma3", "mistral"], MORE_MODES)],
)
def test_tokens_and_logits_of_the_dynamic_cache(name: str, mode: str, attn: str) -> None:
    cache = new_cache(name, attn)
    got = generate(name, attn, cache, ragged_prompts(), **MODES[mode])
    how = {} if mode == "chunked" else MODES[mode]  # the dynamic cache in one piece
    assert_same(got, expected(name, ragged_prompts, **how))
    assert cache.get_seq_length() == 13 + NEW_TOKENS - 1


@pytest.mark.parametrize("name", ["gemma3", "llama-mqa"])
def test_with_sdpa(name: str) -> None:
    got = generate(name, "sdpa", new_cache(name, "sdpa"), ragged_prompts())
    assert_same(got, expected(name, ragged_prompts))


@pytest.mark.parametrize("attn", ["eager", "mqa"])
@pytest.mark.parametrize("name", [*BOTH_KINDS, "llama-mqa"])
@pytest.mark.parametrize("by", ["lookup", "draft"])
def test_assisted_decoding_gives_the_plain_tokens(name: str, attn: str, by: str) -> None:
    cache = new_cache(name, attn)
    removed = watch_crops(cache)
    how = {"prompt_lookup_num_tokens": 4} if by == "lookup" else {"assistant_model": draft(name)}
    got = generate(name, attn, cache, repeating_prompt(), **how)
    assert_same(got, expected(name, repeating_prompt))
    assert min(removed) < -1  # several tokens at once, from a window that is full
    if by == "draft":
        assert len(removed) < NEW_TOKENS - 1  # others were accepted


@functools.cache
def draft(name: str) -> PreTrainedModel:
    """Proposes six tokens at a time, some of them the model's."""
    made = hf_models.model(name, "eager")
    generator = torch.manual_seed(0)
    with torch.no_grad():
        for weight in made.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight += 0.05 * noise * weight.square().mean().sqrt()
    made.generation_config.num_assistant_tokens = 6
    made.generation_config.num_assistant_tokens_schedule = "constant"
    made.generation_config.assistant_confidence_threshold = 0.0
    return made


def watch_crops(cache: MQACache) -> list[int]:
    removed: list[int] = []
    crop = cache.crop

    def watched(tokens_to_remove: int) -> None:
        removed.append(int(tokens_to_remove))
        crop(tokens_to_remove)

    cache.crop = watched  # type: ignore[method-assign]
    return removed


@pytest.mark.parametrize("attn", ["eager", "mqa"])
@pytest.mark.parametrize("name", BOTH_KINDS)
def test_a_conversation_goes_on(name: str, attn: str) -> None:
    cache = new_cache(name, attn, room=96)
    prompts = ragged_prompts()
    first = generate(name, attn, cache, prompts)
    more = torch.cat([first.sequences, hf_models.tokens(3, 7, seed=5)], dim=1)
    mask = torch.nn.functional.pad(prompts["attention_mask"], (0, NEW_TOKENS + 7), value=1)
    longer = {"input_ids": more, "attention_mask": mask}
    wanted = generate(name, "eager", DynamicCache(config=config(name)), longer)
    assert_same(generate(name, attn, cache, longer), wanted)


def test_a_copy_goes_on_by_itself() -> None:
    prompts = ragged_prompts()
    cache = new_cache("gemma3", "mqa", torch.int8)
    with torch.no_grad():
        model("gemma3", "mqa")(**prompts, past_key_values=cache)
    used = generate("gemma3", "mqa", copy.deepcopy(cache), with_one_more(prompts))
    assert_same(generate("gemma3", "mqa", cache, with_one_more(prompts)), used, atol=0)


def with_one_more(prompts: dict[str, Tensor]) -> dict[str, Tensor]:
    tokens = torch.cat([prompts["input_ids"], hf_models.tokens(3, 1, seed=8)], dim=1)
    mask = torch.nn.functional.pad(prompts["attention_mask"], (0, 1), value=1)
    return {"input_ids": tokens, "attention_mask": mask}


class RoundedCache(DynamicCache):
    """Keys and values as an 8-bit cache stores them, in float32 again."""

    def __init__(self, config: transformers.PreTrainedConfig, dtype: torch.dtype) -> None:
        super().__init__(config=config)
        self.dtype = dtype

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().update(*rounded(keys, values, self.dtype), *args, **kwargs)


def rounded(keys: Tensor, values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    caches = [torch.zeros(x.shape, dtype=dtype) for x in (keys, values)]
    scales = [torch.zeros(x.shape[:3]) for x in (keys, values)]
    start = torch.zeros(len(keys), dtype=torch.int64)
    mqa.kv_append(*caches, keys, values, start, key_scale=scales[0], value_scale=scales[1])
    return tuple(c.float() * s[..., None] for c, s in zip(caches, scales, strict=True))


@pytest.mark.parametrize("dtype", EIGHT_BIT)
@pytest.mark.parametrize(
    ("name", "mode"),
    [*itertools.product(["gemma3"], MODES), ("gpt_oss", "greedy"), ("gpt_bigcode-mqa", "greedy")],
)
def test_eight_bits_are_those_of_rounded_keys(name: str, dtype: torch.dtype, mode: str) -> None:
    how = {} if mode == "chunked" else MODES[mode]
    wanted = generate(name, "eager", RoundedCache(config(name), dtype), ragged_prompts(), **how)
    got = generate(name, "mqa", new_cache(name, "mqa", dtype), ragged_prompts(), **MODES[mode])
    exact = expected(name, ragged_prompts, **how)
    assert got.sequences.tolist() == wanted.sequences.tolist()
    # A number between two codes may fall to either side, by the last bit of what came before it:
    # that moves some logits by a hundredth of what all rounding does.
    rounding = rms(wanted.logits[0] - exact.logits[0])
    assert rounding > 1e-3
    assert rms(torch.stack(got.logits) - torch.stack(wanted.logits)) < rounding / 50


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


@pytest.mark.parametrize("dtype", EIGHT_BIT)
def test_eight_bits_in_assisted_decoding(dtype: torch.dtype) -> None:
    plain = generate("gemma3", "mqa", new_cache("gemma3", "mqa", dtype), repeating_prompt())
    cache = new_cache("gemma3", "mqa", dtype)
    removed = watch_crops(cache)
    got = generate("gemma3", "mqa", cache, repeating_prompt(), assistant_model=draft("gemma3"))
    assert_same(got, plain)
    assert min(removed) < -1


@pytest.mark.parametrize(("dtype", "step"), [(torch.int8, 1 / 254), (torch.float8_e4m3fn, 1 / 16)])
def test_eight_bits_are_as_near_as_they_can_be(dtype: torch.dtype, step: float) -> None:
    cache = new_cache("llama-mqa", "mqa", dtype)
    keys, values = torch.randn(2, 2, 1, 5, 16, generator=torch.manual_seed(0))
    for stored, wanted in zip(cache.update(keys, values, 0), (keys, values), strict=True):
        assert stored.dtype == dtype
        got = stored.float()[:, :, :5] * stored.mqa_scale[:, :, :5, None]  # type: ignore[attr-defined]
        largest = wanted.abs().amax(-1, keepdim=True)
        assert ((got - wanted).abs() <= largest * step * 1.001).all()


@pytest.mark.parametrize("dtype", [None, *EIGHT_BIT])
@pytest.mark.parametrize("name", BOTH_KINDS)
def test_memory_is_that_of_the_formula(name: str, dtype: torch.dtype | None) -> None:
    cache = new_cache(name, "mqa", dtype)
    assert cache.nbytes == 0
    generate(name, "mqa", cache, ragged_prompts())
    heads, D, B = config(name).num_key_value_heads, 16, 3
    row = D * 4 if dtype is None else D + 4  # a scale in float32
    assert cache.nbytes == 2 * B * heads * (ROOM + WINDOW) * row
    assert cache.layers[0].keys.shape == (B, heads, WINDOW, D)
    assert cache.layers[1].keys.shape == (B, heads, ROOM, D)


def test_a_window_longer_than_the_cache_takes_no_more_than_the_cache() -> None:
    cache = new_cache("gemma3", "mqa", room=WINDOW)
    with torch.no_grad():
        model("gemma3", "mqa")(hf_models.tokens(1, 5), past_key_values=cache)
    assert cache.is_sliding == [True, False]
    assert [layer.keys.shape[2] for layer in cache.layers] == [WINDOW, WINDOW]
    returned = cache.update(*torch.randn(2, 1, 1, 2, 16), 0)
    assert [x.data_ptr() for x in returned] == [x.data_ptr() for x in memory(cache)[:2]]
    cache.layers[0].crop(-2)


@pytest.mark.parametrize("dtype", [None, *EIGHT_BIT])
def test_unused_slots_may_hold_anything(dtype: torch.dtype | None) -> None:
    prompts = ragged_prompts()
    got = {}
    for poison in (False, True):
        cache = new_cache("gemma3", "mqa", dtype)
        cache.early_initialization(3, 1, 16, torch.float32, torch.device("cpu"))
        if poison:
            for tensor in memory(cache):
                (tensor if dtype is None else tensor.mqa_scale).fill_(torch.nan)  # type: ignore[attr-defined]
        got[poison] = generate("gemma3", "mqa", cache, prompts, prefill_chunk_size=5)
    assert_same(got[True], got[False], atol=0)


def test_a_single_token_reads_the_ring_where_it_lies() -> None:
    cache = new_cache("mistral", "mqa")
    generator = torch.manual_seed(0)
    for _ in range(2 * WINDOW):
        keys, values = torch.randn(2, 1, 2, 1, 16, generator=generator)
        returned = cache.update(keys, values, 0)
        assert [x.data_ptr() for x in returned] == [x.data_ptr() for x in memory(cache)[:2]]


class Counter(CompileCounterWithBackend):
    """Counts graphs; equal to itself when a configuration is copied."""

    def __deepcopy__(self, memo: object) -> Counter:
        return self


def test_compiled_generate() -> None:
    counter = Counter("aot_eager")
    compiled = CompileConfig(fullgraph=True, backend=counter, mode=None)
    compiled._compile_all_devices = True
    prompts = repeating_prompt()
    wanted = generate("gemma3", "mqa", new_cache("gemma3", "mqa"), prompts)
    room = 26 + NEW_TOKENS - 1
    cache = new_cache("gemma3", "mqa", room=room)
    got = generate("gemma3", "mqa", cache, prompts, compile_config=compiled)
    addresses = [tensor.data_ptr() for tensor in memory(cache)]
    assert_same(got, wanted)
    assert counter.frame_count == 1
    cache.reset()
    assert_same(generate("gemma3", "mqa", cache, prompts, compile_config=compiled), wanted)
    cache.reset()
    longer = {"compile_config": compiled, "max_new_tokens": NEW_TOKENS + 1}
    with pytest.raises(
        ValueError, match=rf"MQACache is full: .* {room} .* got {room} .* and 1 new"
    ):
        generate("gemma3", "mqa", cache, prompts, **longer)
    assert counter.frame_count == 1
    assert [tensor.data_ptr() for tensor in memory(cache)] == addresses


@torch.no_grad()
def test_compiled_steps_make_their_masks_inside() -> None:
    counter = Counter("aot_eager")
    whole = model("gemma3", "mqa")
    step = torch.compile(whole.forward, fullgraph=True, backend=counter)
    compiled, eager = (new_cache("gemma3", "mqa", torch.int8) for _ in range(2))
    for cache in (compiled, eager):
        whole(hf_models.tokens(2, 5), past_key_values=cache)
    for i in range(20):
        token = hf_models.tokens(2, 1, seed=i)
        wanted = whole(token, past_key_values=eager).logits
        got = step(token, past_key_values=compiled).logits
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert counter.frame_count == 1
    assert compiled.get_seq_length() == eager.get_seq_length() == 25


def test_reset_starts_again_in_the_same_memory() -> None:
    cache = new_cache("gemma3", "mqa", torch.int8)
    first = generate("gemma3", "mqa", cache, ragged_prompts())
    addresses = [tensor.data_ptr() for tensor in memory(cache)]
    cache.reset()
    assert cache.get_seq_length() == 0
    assert not any(tensor.float().any() for tensor in memory(cache))
    assert_same(generate("gemma3", "mqa", cache, ragged_prompts()), first, atol=0)
    assert [tensor.data_ptr() for tensor in memory(cache)] == addresses


@torch.no_grad()
@pytest.mark.parametrize("dtype", [None, torch.int8])
@pytest.mark.parametrize("recording", [False, True])
def test_rows_are_chosen(dtype: torch.dtype | None, recording: bool) -> None:
    prompts = ragged_prompts()
    cache = new_cache("gemma3", "mqa", dtype)
    if recording:
        cache.activate_past_recording()
    model("gemma3", "mqa")(**prompts, past_key_values=cache)
    rows = torch.tensor([1, 1, 2, 2])
    cache.batch_select_indices(torch.tensor([False, True, True]))
    assert cache.batch_size == 2
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 4
    chosen = {key: value[rows] for key, value in prompts.items()}
    longer = with_one_more({key: value[:3] for key, value in chosen.items()})
    longer = {key: torch.cat([value, value[2:]]) for key, value in longer.items()}
    fresh = new_cache("gemma3", "mqa", dtype)
    model("gemma3", "mqa")(**chosen, past_key_values=fresh)
    step = {"input_ids": longer["input_ids"][:, -1:], "attention_mask": longer["attention_mask"]}
    got, wanted = (model("gemma3", "mqa")(**step, past_key_values=c).logits for c in (cache, fresh))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("attn", ["eager", "mqa"])
@pytest.mark.parametrize(("before", "block"), [(3, 2), (20, 5), (20, 3 * WINDOW)])
def test_crop_takes_back_all_of_the_last_forward(attn: str, before: int, block: int) -> None:
    tokens = hf_models.tokens(2, before)
    cache, fresh = new_cache("gemma3", attn), new_cache("gemma3", attn)
    cache.activate_past_recording()
    for c in (cache, fresh):
        model("gemma3", attn)(tokens, past_key_values=c)
    for _ in range(2):
        model("gemma3", attn)(hf_models.tokens(2, block, seed=2), past_key_values=cache)
        cache.crop(-block)
    assert cache.get_seq_length() == before
    for i in range(3):
        token = hf_models.tokens(2, 1, seed=i)
        got, wanted = (
            model("gemma3", attn)(token, past_key_values=c).logits for c in (cache, fresh)
        )
        # The window's keys are summed from another slot on.
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


@torch.no_grad()
def test_crop_needs_no_recording_before_the_window_is_full() -> None:
    cache, fresh = new_cache("gemma3", "mqa"), new_cache("gemma3", "mqa")
    tokens = hf_models.tokens(2, WINDOW)
    model("gemma3", "mqa")(tokens, past_key_values=cache)
    cache.crop(-3)
    model("gemma3", "mqa")(tokens[:, : WINDOW - 3], past_key_values=fresh)
    for i in range(WINDOW):
        token = hf_models.tokens(2, 1, seed=i)
        got, wanted = (
            model("gemma3", "mqa")(token, past_key_values=c).logits for c in (cache, fresh)
        )
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_crop_refuses_what_it_cannot_do_and_changes_nothing() -> None:
    cache = new_cache("gemma3", "mqa")
    model("gemma3", "mqa")(hf_models.tokens(2, WINDOW + 1), past_key_values=cache)
    before = [tensor.clone() for tensor in memory(cache)]
    with pytest.raises(ValueError, match=r"MQACache\.crop: expected at most 0 tokens .* got -2$"):
        cache.crop(-2)
    for wrong in (3, -WINDOW - 2):
        with pytest.raises(
            ValueError, match=rf"MQACache\.crop: expected minus .* 9 .* got {wrong}"
        ):
            cache.crop(wrong)
    assert [layer.get_seq_length() for layer in cache.layers] == [WINDOW + 1] * 2
    assert all(map(torch.equal, memory(cache), before))


@torch.no_grad()
@pytest.mark.parametrize("name", ["gemma3", "llama-mqa"])
def test_a_full_cache_refuses_and_stays_as_it_is(name: str) -> None:
    cache = new_cache(name, "mqa", room=12)
    with pytest.raises(ValueError, match=r"MQACache is full: .* 12 .* got 0 .* and 13 new$"):
        generate(name, "mqa", cache, ragged_prompts())
    assert not cache.layers[0].is_initialized
    model(name, "mqa")(hf_models.tokens(2, 10), past_key_values=cache)
    before = [tensor.clone() for tensor in memory(cache)]
    with pytest.raises(ValueError, match=r"MQACache is full: .* 12 .* got 10 .* and 3 new$"):
        cache.update(*torch.randn(2, 2, 1, 3, 16), 0)
    with pytest.raises(ValueError, match=r"MQACache is full: .* got 10 .* and 3 new$"):
        model(name, "mqa")(hf_models.tokens(2, 3), past_key_values=cache)
    assert all(map(torch.equal, memory(cache), before))
    assert cache.get_seq_length() == 10
    assert cache.get_max_length() == 12
    model(name, "mqa")(hf_models.tokens(2, 2), past_key_values=cache)  # there's room for these


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_eight_bits_need_our_attention(attn: str) -> None:
    cache = new_cache("llama-mqa", attn, "int8")
    wanted = rf'MQACache: expected the attention implementation "mqa" .* got "{attn}"$'
    with pytest.raises(ValueError, match=wanted):
        generate("llama-mqa", attn, cache, ragged_prompts())
    assert cache.nbytes == 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["mistral", "llama-mqa"])
def test_another_batch_needs_another_cache(name: str) -> None:
    cache = new_cache(name, "mqa")
    model(name, "mqa")(hf_models.tokens(2, 4), past_key_values=cache)
    with pytest.raises(ValueError, match=r"MQACache: expected a batch of 2, .* got 3$"):
        model(name, "mqa")(hf_models.tokens(3, 4), past_key_values=cache)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"MQACache: expected max_cache_len >= 1, got 0$"):
        new_cache("llama-mqa", "mqa", room=0)
    for wrong in ("int4", "zeros", torch.float16):
        with pytest.raises(ValueError, match=rf"MQACache: expected cache_dtype .* got {wrong}$"):
            new_cache("llama-mqa", "mqa", wrong)
    assert new_cache("llama-mqa", "mqa", "float8_e4m3fn")
    with pytest.raises(NotImplementedError, match=r"latent attention, .* got int8$"):
        new_cache("deepseek_v3", "mqa", "int8")
    with pytest.raises(NotImplementedError, match=r"without ALiBi, .* got FalconConfig$"):
        MQACache(hf_models.config("falcon-alibi"), 8)
    mixed = transformers.Qwen3NextConfig(num_hidden_layers=4)
    with pytest.raises(NotImplementedError, match=r"got one that .* in LinearAttentionLayer$"):
        MQACache(mixed, 8)
