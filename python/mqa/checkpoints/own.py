"""A layout for decoders that are of no published family: `DecoderConfig` as it is."""

from dataclasses import asdict, fields
from typing import Any

from mqa.checkpoints.fields import Fields
from mqa.checkpoints.layout import Description, Layout
from mqa.config import DecoderConfig, RopeScaling

NAMES = {field.name for field in fields(DecoderConfig)} - {"attention_impl"}  # no part of a model
LAYOUT = Layout()


def own(values: Fields) -> Description:
    """Any decoder."""
    found = {name: values.get(name) for name in sorted(NAMES)}
    scaling = found["rope_scaling"]
    changes = {
        "rope_scaling": None if scaling is None else RopeScaling(**scaling),
        "windows": tuple(found["windows"]),
        "eos_token_ids": tuple(found["eos_token_ids"]),
    }
    return DecoderConfig(**found | changes), LAYOUT


def own_fields(config: DecoderConfig) -> dict[str, Any]:
    """What `own` reads, written down."""
    return {name: value for name, value in asdict(config).items() if name in NAMES}
