"""Every family of models that a Hugging Face folder may hold."""

from collections.abc import Callable, Mapping
from typing import Any

from mqa.checkpoints import falcon, gemma, gpt_bigcode, huggingface, llama
from mqa.checkpoints.fields import Fields
from mqa.checkpoints.layout import Description

FAMILIES: dict[str, Callable[[Fields], Description]] = {
    **llama.CONFIGS,
    **gemma.CONFIGS,
    "gpt_bigcode": gpt_bigcode.gpt_bigcode,
    "falcon": falcon.falcon,
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
