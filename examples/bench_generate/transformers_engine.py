"""`generate` of Hugging Face's transformers as an engine."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CompileConfig,
    DynamicCache,
    GgufConfig,
    PreTrainedModel,
    StaticCache,
)
from transformers.generation.streamers import BaseStreamer

import engine
from engine import MOST_TOKENS, PREFILL_CHUNK, Run


def load_gguf(gguf: Path, dtype: torch.dtype, attn_implementation: str) -> PreTrainedModel:
    """A GGUF file, dequantised to `dtype`, as a model of transformers."""
    return AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=dtype,
        attn_implementation=attn_implementation,
        quantization_config=GgufConfig(dequantize=True),
    )


class TokenStream(BaseStreamer):
    """Takes the tokens from `generate`, which gives it the prompt first."""

    def __init__(self) -> None:
        self.run = Run()
        self.has_prompt = False

    def put(self, value: Tensor) -> None:
        """The prompt, or a token."""
        if self.has_prompt:
            self.run.add(int(value))
        self.has_prompt = True

    def end(self) -> None:
        """Nothing is left to do."""


class TransformersEngine:
    """A model with a growing cache in eager mode, or with a static one and `torch.compile`."""

    def __init__(self, model: PreTrainedModel, compiled: bool = False) -> None:
        self.model = model
        self.compiled = compiled

    @torch.no_grad()
    def prefill(self, tokens: Sequence[int]) -> None:
        """Compute the cache of `tokens`."""
        self.prompt = torch.tensor([[*tokens, 0]])
        self.cache: DynamicCache | StaticCache
        if self.compiled:
            slots = len(tokens) + MOST_TOKENS
            self.cache = StaticCache(config=self.model.config, max_cache_len=slots)
        else:
            self.cache = DynamicCache(config=self.model.config)
        for chunk in torch.split(self.prompt[:, :-1], PREFILL_CHUNK, dim=1):
            self.model(chunk, cache=self.cache, use_cache=True, logits_to_keep=1)

    def decode(self, num_tokens: int) -> Run:
        """Let `generate` continue; then the cache is cut back to the context."""
        stream = TokenStream()
        self.model.generate(
            self.prompt,
            attention_mask=torch.ones_like(self.prompt),
            cache=self.cache,
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            streamer=stream,
            compile_config=cpu_compile_config() if self.compiled else None,
        )
        context = self.prompt.size(1) - 1
        self.cache.crop(context - int(self.cache.get_seq_length()))
        return stream.run


def cpu_compile_config() -> CompileConfig:
    """Lets `generate` compile on the CPU too.

    `generate` does that on accelerators only, and in a mode (CUDA graphs) that is theirs.
    """
    config = CompileConfig(mode="default", backend=engine.COMPILE_BACKEND)
    config._compile_all_devices = True
    return config
