"""What `transformers` reads in a GGUF file, and what it generates: the reference."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, Cache, DynamicCache, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from measure import Run


def load_tokenizer(gguf: Path) -> Tokenizer:
    """The tokenizer inside a GGUF file."""
    return AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).backend_tokenizer


def load_transformers(gguf: Path, attn_implementation: str = "sdpa") -> PreTrainedModel:
    """The model in float32."""
    return AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        attn_implementation=attn_implementation,
    )


class _Clock(BaseStreamer):
    """Notes when `generate` hands over the prompt and each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None: ...


def run_transformers(
    model: PreTrainedModel,
    prompt: list[int],
    num_tokens: int,
    new_cache: Callable[[], Cache] = DynamicCache,
) -> Run:
    """The continuation of `prompt` by `generate`: greedy, not ended by any token."""
    model.generation_config.eos_token_id = None
    inputs = torch.tensor([prompt])
    clock, cache = _Clock(), new_cache()
    output = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        cache=cache,
        max_new_tokens=num_tokens,
        do_sample=False,
        streamer=clock,
    )
    start, first, *_, last = clock.times
    return Run(
        output[0, len(prompt) :].tolist(),
        len(prompt) / (first - start),
        (num_tokens - 1) / (last - first),
        sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values)),
    )
