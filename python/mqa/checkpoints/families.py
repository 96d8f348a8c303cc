"""Every family of models that a Hugging Face folder may hold."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mqa.checkpoints import falcon, gemma, gpt_bigcode, huggingface, llama, own
from mqa.checkpoints.fields import Fields
from mqa.checkpoints.layout import Description, Layout
from mqa.config import DecoderConfig

FAMILIES: dict[str, Callable[[Fields], Description]] = {
    **llama.CONFIGS,
    **gemma.CONFIGS,
    "gpt_bigcode": gpt_bigcode.gpt_bigcode,
    "falcon": falcon.falcon,
    "mqa": own.own,
}
# For each family: its class in transformers, and the inverse of the function above.
Writer = Callable[[DecoderConfig], dict[str, Any]]
WRITERS: dict[str, tuple[str, Writer]] = {
    "llama": ("LlamaForCausalLM", llama.llama_fields),
    "mistral": ("MistralForCausalLM", llama.mistral_fields),
    "qwen2": ("Qwen2ForCausalLM", llama.qwen_fields),
    "qwen3": ("Qwen3ForCausalLM", llama.qwen_fields),
    "gemma": ("GemmaForCausalLM", gemma.gemma_fields),
    "gemma2": ("Gemma2ForCausalLM", gemma.gemma2_fields),
    "gemma3_text": ("Gemma3ForCausalLM", gemma.gemma3_fields),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", gpt_bigcode.gpt_bigcode_fields),
    "falcon": ("FalconForCausalLM", falcon.falcon_fields),
}


def read_config(values: Mapping[str, Any]) -> Description:
    """Configuration and layout of the model that a `config.json` describes.

    Raises:
        ValueError: a size is missing, or the model is none that `Decoder` computes.
    """
    family = values.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"expected model_type to be one of {sorted(FAMILIES)}, got {family!r}")
    fields = Fields(values, huggingface.IRRELEVANT)
    description = FAMILIES[family](fields)
    fields.refuse_unread(f"a {family} model")
    return description


def write_config(config: DecoderConfig) -> tuple[dict[str, Any], Layout]:
    """A `config.json` and a layout for a decoder, of the first family that has its like.

    A family has its like if what is written reads as the same decoder. If none has, the file is
    one that only `read_config` understands.
    """
    for family, (architecture, write) in WRITERS.items():
        values = {"architectures": [architecture], "model_type": family, **write(config)}
        try:
            found, layout = read_config(values)
        except ValueError:
            continue
        if _essence(found) == _essence(config):
            return values, layout
    return {"model_type": "mqa", **own.own_fields(config)}, own.LAYOUT


def _essence(config: DecoderConfig) -> DecoderConfig:
    """Alike for decoders that compute the same."""
    return replace(
        config,
        attention_impl="mqa",
        attention_scale=config.scale,
        windows=config.windows if any(config.windows) else (),
    )
