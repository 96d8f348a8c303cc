"""A real model: SmolLM2-135M, as trained and with repeated KV heads, against `transformers`."""

import torch

import mqa
from programs import ROOT
from reference import load_tokenizer, load_transformers, run_transformers
from smollm2 import install


def test_greedy_tokens_are_those_of_transformers() -> None:
    gguf = install(ROOT / "build/demo/smollm2")
    prompt = load_tokenizer(gguf).encode("The lighthouse keeper climbed the stairs every").ids
    expected = run_transformers(load_transformers(gguf), prompt, 24).tokens
    trained = mqa.load_gguf(gguf)
    for model in (trained, mqa.convert(trained, num_kv_heads=9)):
        for impl in ("mqa", "torch"):
            tokens = mqa.generate(model.with_attention_impl(impl), [prompt], 24, stop_tokens=())
            assert tokens == [expected]
    logits = [
        model(torch.tensor([prompt]), torch.tensor([0]), model.new_cache(1, len(prompt)))
        for model in (trained, mqa.convert(trained, num_kv_heads=9))
    ]
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-4)
