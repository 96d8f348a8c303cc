"""Decoders of every family against `transformers`, loaded from the files that it writes."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import mqa
from decoders import all_logits, random_tokens
from tiny_models import MODELS, tiny_model


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = tiny_model(name)
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = mqa.load(tmp_path)
    tokens = random_tokens(2, 40)
    expected = theirs(tokens).logits
    assert expected.std() > 0.1
    for impl in ("mqa", "torch"):
        ours = model.with_attention_impl(impl)
        assert_close(all_logits(ours, tokens), expected, atol=3e-4, rtol=1e-4)
        assert_close(ours.sequence_logits(tokens), expected, atol=3e-4, rtol=1e-4)
    prompt = tokens[:1, :13]
    continued = theirs.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert mqa.generate(model, prompt.tolist(), 12, stop_tokens=()) == continued[:, 13:].tolist()
