"""`generate` of Hugging Face's transformers as an engine."""

from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Cache,
    CompileConfig,
    DynamicCache,
    GgufConfig,
    PreTrainedModel,
    StaticCache,
)
from transformers.generation.streamers import BaseStreamer

import engine
from engine import MOST_TOKENS, PREFILL_CHUNK, Run


def load_gguf(gguf: Path, dtype: torch.dtype) -> PreTrainedModel:
    """A GGUF file, dequantised to `dtype`, as a model of transformers."""
    return AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=dtype,
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
            self.run.add(int(value.flatten()[0]))  # of the first sequence
        self.has_prompt = True

    def end(self) -> None:
        """Nothing is left to do."""


def dynamic_cache(model: PreTrainedModel, slots: int) -> Cache:
    """One that grows, however many slots will be needed."""
    return DynamicCache(config=model.config)


def static_cache(model: PreTrainedModel, slots: int) -> Cache:
    """One that is allocated once."""
    return StaticCache(config=model.config, max_cache_len=slots)


class TransformersEngine:
    """A model with some attention and cache, in eager mode or with `torch.compile`."""

    def __init__(
        self,
        model: PreTrainedModel,
        compiled: bool = False,
        attn_implementation: str = "sdpa",
        new_cache: Callable[[PreTrainedModel, int], Cache] = dynamic_cache,
    ) -> None:
        self.model = model
        self.compiled = compiled
        self.attn_implementation = attn_implementation
        self.new_cache = new_cache

    def with_attention(self, name: str) -> "TransformersEngine":
        """The same model and cache with another attention; they decode in turn."""
        engine = copy(self)
        engine.attn_implementation = name
        return engine

    @torch.no_grad()
    def prefill(self, tokens: Sequence[int]) -> None:
        """Compute the cache of `tokens`."""
        self._set_context(torch.tensor([[*tokens, 0]]))
        for chunk in torch.split(self.prompt[:, :-1], PREFILL_CHUNK, dim=1):
            self.model(chunk, cache=self.cache, use_cache=True, logits_to_keep=1)

    def fill_with_random_values(self, context: int, batch: int) -> None:
        """Pretend contexts: speed does not depend on what is in the cache."""
        self._set_context(torch.zeros(batch, context + 1, dtype=torch.int64))
        config = self.model.config
        for layer in range(config.num_hidden_layers):
            head = torch.randn(2, context, config.head_dim, dtype=self.model.dtype)
            shape = (batch, config.num_key_value_heads, context, config.head_dim)
            self.cache.update(head[0].expand(shape), head[1].expand(shape), layer)

    def _set_context(self, prompt: Tensor) -> None:
        self.prompt = prompt  # with the token that `decode` begins with
        self.cache = self.new_cache(self.model, prompt.size(1) - 1 + MOST_TOKENS)
        self.model.set_attn_implementation(self.attn_implementation)

    def decode(self, num_tokens: int) -> Run:
        """Let `generate` continue; then the cache is cut back to the context."""
        stream = TokenStream()
        self.model.set_attn_implementation(self.attn_implementation)
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
