"""The key-value cache that `generate` takes."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, cache_utils
from transformers.cache_utils import Cache, StaticCache, StaticLayer, StaticSlidingWindowLayer

from mqa.integrations.transformers.cache_layers import FullLayer, SlotsLayer
from mqa.integrations.transformers.cache_sliding import ATTENTION, SlidingLayer
from mqa.integrations.transformers.cache_slots import EIGHT_BIT

# For layers that share the keys of another one; transformers before 5.23 leaves them out.
DummyLayer: Any = getattr(cache_utils, "DummyLayer", ())


class MQACache(Cache):
    """A cache of fixed size, written in place by `mqa::kv_append`.

    Memory is allocated once, with the first forward: `max_cache_len` slots in layers that attend to
    everything, the window's in sliding layers. `model.generate(past_key_values=...)`, since
    transformers 5.24 also `cache=...`, takes it with any attention implementation; `reset()` makes
    it ready for another prompt.

    Args:
        config: the model's configuration.
        max_cache_len: the most tokens that a sequence may have, prompt and padding included. The
            last token that `generate` returns isn't stored.
        cache_dtype: `torch.int8` or `torch.float8_e4m3fn` (or their names) for keys and values of
            8 bits with a float32 scale per token and head, which need the attention
            implementation "mqa"; None for the model's dtype.

    Raises:
        ValueError: max_cache_len or cache_dtype is none of these.
        NotImplementedError: a kind of layer, or of attention, that this cache doesn't hold.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        ...     num_key_value_heads=1, intermediate_size=64, vocab_size=100)
        >>> model = LlamaForCausalLM(config).eval()
        >>> cache = MQACache(model.config, max_cache_len=8)
        >>> prompt = torch.tensor([[5, 7]])
        >>> tokens = model.generate(prompt, past_key_values=cache, min_length=8, max_length=8)
        >>> tokens.shape, cache.get_seq_length(), cache.nbytes  # 2 layers * 2 sides * 8 * 16 * 4
        (torch.Size([1, 8]), 7, 2048)
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        max_cache_len: int,
        cache_dtype: torch.dtype | str | None = None,
    ) -> None:
        if max_cache_len < 1:
            raise ValueError(f"MQACache: expected max_cache_len >= 1, got {max_cache_len}")
        self._config = config.get_text_config(decoder=True)
        self._cache_dtype = _eight_bit(cache_dtype)
        if self._cache_dtype is not None and getattr(self._config, "kv_lora_rank", None):
            raise NotImplementedError(
                "MQACache: expected cache_dtype=None for a model with latent attention, which "
                f"computes with what the cache returns, got {cache_dtype}"
            )
        if getattr(self._config, "alibi", False):
            raise NotImplementedError(
                f"MQACache: expected a model without ALiBi, whose biases in transformers are for "
                f"the tokens so far, not for all slots, got {type(self._config).__name__}"
            )
        # What layers there are is read from the cache of transformers, which allocates nothing yet.
        layers = StaticCache(self._config, max_cache_len).layers
        super().__init__(layers=[self._layer(layer, max_cache_len) for layer in layers])

    def _layer(self, layer: object, max_cache_len: int) -> Any:
        if isinstance(layer, DummyLayer):
            return layer
        if type(layer) is StaticLayer:
            return FullLayer(max_cache_len, self._cache_dtype, is_sliding=False)
        if type(layer) is StaticSlidingWindowLayer:
            window = layer.max_cache_len
            if window == max_cache_len:
                return FullLayer(max_cache_len, self._cache_dtype, is_sliding=True)
            return SlidingLayer(window, max_cache_len, self._cache_dtype, self._config)
        raise NotImplementedError(
            "MQACache: expected layers with full or sliding attention, got one that transformers "
            f"keeps in {type(layer).__name__}"
        )

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: object,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor]:
        """Appends the states of a layer; returns keys and values with all that they may see.

        8-bit keys and values carry their scales, float32 `[B, H_kv, S]`, as attribute `mqa_scale`.

        Raises:
            ValueError: the cache is full, or an 8-bit cache is used with an attention
                implementation other than "mqa".
        """
        implementation = self._config._attn_implementation
        if self._cache_dtype is not None and implementation != ATTENTION:
            raise ValueError(
                f'MQACache: expected the attention implementation "{ATTENTION}" for keys and '
                f'values in {self._cache_dtype}, got "{implementation}"'
            )
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last `-tokens_to_remove` tokens of every sequence.

        Sliding layers whose window has been full can forget those of the last forward, if
        `activate_past_recording` came before it, as it does in assisted decoding.

        Raises:
            ValueError: there aren't as many, or a window cannot be restored.
        """
        for layer in self.layers:
            if isinstance(layer, SlotsLayer):
                layer.check_crop(tokens_to_remove)
        super().crop(tokens_to_remove)

    @property
    def nbytes(self) -> int:
        """Memory of keys, values and scales; 0 before the first forward."""
        return sum(layer.nbytes for layer in self.layers if isinstance(layer, SlotsLayer))


def _eight_bit(dtype: torch.dtype | str | None) -> torch.dtype | None:
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and named not in EIGHT_BIT:
        raise ValueError(
            f"MQACache: expected cache_dtype torch.int8, torch.float8_e4m3fn or None, got {dtype}"
        )
    return named
