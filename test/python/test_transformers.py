"""``attn_implementation="mqa"`` in Hugging Face transformers against its own attention."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel, StaticCache

import hf_models
import mqa.integrations.transformers

mqa.integrations.transformers.register()

BATCH, LENGTH = 3, 3 * hf_models.WINDOW
CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # of logits between -10 and 10; a wrong mask changes them by 1
every_model = pytest.mark.parametrize("name", hf_models.NAMES)


@functools.cache
def cached_model(name: str, attn_implementation: str) -> PreTrainedModel:
    return hf_models.model(name, attn_implementation)


def reference(name: str) -> PreTrainedModel:
    return cached_model(name, hf_models.REFERENCES[name])


def ours(name: str) -> PreTrainedModel:
    return cached_model(name, "mqa")


def padding(kind: str) -> torch.Tensor:
    """[BATCH, LENGTH], 1 for a token; the rows have different numbers of them."""
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    for row, count in enumerate((0, 4, hf_models.WINDOW + 3)):
        if kind == "left":
            mask[row, :count] = 0
        elif kind == "right":
            mask[row, LENGTH - count :] = 0
        else:
            mask[row, : count // 2] = 0
            mask[row, LENGTH - count // 2 :] = 0
    return mask


@every_model
def test_attention_is_sharp(name):
    """Otherwise the other tests of this file would not notice a wrong mask, head or scale."""
    with torch.no_grad():
        out = cached_model(name, "eager")(hf_models.tokens(BATCH, LENGTH), output_attentions=True)
    for weights in out.attentions:
        rows = weights[:, :, hf_models.WINDOW :]
        uniform = 1 / (rows > 0).sum(-1, keepdim=True)
        assert (rows.amax(-1, keepdim=True) > 3 * uniform).float().mean() > 0.75


@every_model
@torch.no_grad()
def test_prefill(name):
    tokens = hf_models.tokens(BATCH, LENGTH)
    torch.testing.assert_close(ours(name)(tokens).logits, reference(name)(tokens).logits, **CLOSE)


@every_model
@pytest.mark.parametrize("kind", ["left", "right", "both"])
@torch.no_grad()
def test_padding(name, kind):
    tokens, mask = hf_models.tokens(BATCH, LENGTH), padding(kind)
    got, want = (m(tokens, attention_mask=mask).logits for m in (ours(name), reference(name)))
    torch.testing.assert_close(got[mask.bool()], want[mask.bool()], **CLOSE)


@every_model
@torch.no_grad()
def test_row_of_padding_gives_no_nan(name):
    mask = padding("left")
    mask[1] = 0
    got = ours(name)(hf_models.tokens(BATCH, LENGTH), attention_mask=mask).logits
    assert got.isfinite().all()


# Falcon with ALiBi cannot use a static cache, see test_alibi_with_static_cache_is_refused.
CACHES = [
    ("dynamic", True),
    ("dynamic, windows not cut", False),
    ("static", False),
    ("static", True),
]
STRATEGIES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static": {"cache_implementation": "static", "disable_compile": True},
}


def possible(name: str, cache: str) -> bool:
    return (name, cache) != ("falcon-alibi", "static")


def new_cache(kind: str, model: PreTrainedModel) -> DynamicCache | StaticCache:
    if kind == "dynamic":
        return DynamicCache(config=model.config)
    if kind == "dynamic, windows not cut":
        return DynamicCache()
    return StaticCache(config=model.config, max_cache_len=LENGTH + 5)


@pytest.mark.parametrize(
    ("name", "kind", "padded"),
    [(name, *cache) for name in hf_models.NAMES for cache in CACHES if possible(name, cache[0])],
)
@torch.no_grad()
def test_chunks_then_single_steps(name, kind, padded):
    model, tokens = ours(name), hf_models.tokens(BATCH, LENGTH)
    mask = padding("left") if padded else torch.ones_like(tokens)
    cache, logits, start = new_cache(kind, model), [], 0
    for end in (6, 12, 20, *range(21, LENGTH + 1)):
        out = model(
            tokens[:, start:end],
            attention_mask=mask[:, :end] if padded else None,
            past_key_values=cache,
        )
        logits.append(out.logits)
        start = end
    want = reference(name)(tokens, attention_mask=mask).logits
    torch.testing.assert_close(torch.cat(logits, 1)[mask.bool()], want[mask.bool()], **CLOSE)


@functools.cache
def generated_by_reference(name: str, batch: int, new_tokens: int, beams: int) -> list[list[int]]:
    return (
        reference(name)
        .generate(
            hf_models.tokens(BATCH, LENGTH)[:batch],
            attention_mask=padding("left")[:batch],
            max_new_tokens=new_tokens,
            num_beams=beams,
        )
        .tolist()
    )


@pytest.mark.parametrize(
    ("name", "strategy"),
    [(name, how) for name in hf_models.NAMES for how in STRATEGIES if possible(name, how)],
)
def test_generate(name, strategy):
    got = ours(name).generate(
        hf_models.tokens(BATCH, LENGTH),
        attention_mask=padding("left"),
        max_new_tokens=6,
        **STRATEGIES[strategy],
    )
    beams = STRATEGIES[strategy].get("num_beams", 1)
    assert got.tolist() == generated_by_reference(name, BATCH, 6, beams)


@every_model
@pytest.mark.parametrize("proposer", ["assistant_model", "prompt_lookup"])
def test_assisted_generation_gives_the_greedy_tokens(name, proposer):
    if proposer == "assistant_model":
        how = {"assistant_model": assistant(name)}
    else:
        how = {"prompt_lookup_num_tokens": 4}
    model, calls = ours(name), []
    hook = model.register_forward_pre_hook(lambda *_: calls.append(None))
    got = model.generate(hf_models.tokens(BATCH, LENGTH)[:1], max_new_tokens=10, **how)
    hook.remove()
    assert got.tolist() == generated_by_reference(name, 1, 10, 1)
    if proposer == "assistant_model":
        assert len(calls) < 8  # each verifies four proposals, of which one or two are wrong


def assistant(name: str) -> PreTrainedModel:
    """Proposes what the model of that name would say, but says each third time the opposite."""
    made, calls = hf_models.model(name, "mqa"), itertools.count(1)
    made.get_output_embeddings().register_forward_hook(
        lambda module, args, logits: -logits if next(calls) % 3 == 0 else None
    )
    made.generation_config.num_assistant_tokens = 4
    made.generation_config.num_assistant_tokens_schedule = "constant"
    made.generation_config.assistant_confidence_threshold = 0.0
    return made


@every_model
def test_gradients_in_training(name):
    tokens, mask = hf_models.tokens(BATCH, LENGTH), padding("left")
    # Eager lets a padded position see all keys alike, ours none: it must not predict a token.
    labels = tokens.masked_fill(mask.cumsum(1) <= 1, -100)
    grads = []
    for model in (ours(name), reference(name)):
        model.train()
        model.zero_grad()
        model(tokens, attention_mask=mask, labels=labels, use_cache=False).loss.backward()
        model.eval()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    got, want = grads
    assert got.keys() == want.keys()
    for parameter, grad in want.items():
        error = (got[parameter] - grad).abs().max()
        assert error <= 1e-4 * grad.abs().max() + 1e-7, parameter
