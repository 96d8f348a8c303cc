"""mqa in Hugging Face transformers: ``attn_implementation="mqa"`` and a cache for ``generate``."""

from transformers import AttentionInterface, AttentionMaskInterface
from transformers.models.falcon.modeling_falcon import FALCON_ATTENTION_CLASSES

from mqa.integrations.transformers.attention import attention_forward
from mqa.integrations.transformers.cache import MQACache
from mqa.integrations.transformers.falcon import FalconMQAAttention
from mqa.integrations.transformers.masks import visible_keys

__all__ = ["MQACache", "register"]


def register() -> None:
    """Makes ``attn_implementation="mqa"`` known to transformers; doing it again is harmless.

    Example:
        >>> import torch, transformers, mqa.integrations.transformers
        >>> mqa.integrations.transformers.register()
        >>> config = transformers.LlamaConfig(hidden_size=64, num_hidden_layers=2,
        ...     num_attention_heads=4, num_key_value_heads=1, intermediate_size=64, vocab_size=100)
        >>> model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="mqa")
        >>> model(torch.tensor([[5, 7, 11]])).logits.shape
        torch.Size([1, 3, 100])
    """
    AttentionInterface.register("mqa", attention_forward)
    AttentionMaskInterface.register("mqa", visible_keys)
    FALCON_ATTENTION_CLASSES["mqa"] = FalconMQAAttention
