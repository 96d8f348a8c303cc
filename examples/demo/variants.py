"""One trained model with three numbers of KV heads."""

from dataclasses import dataclass
from pathlib import Path

import mqa
from exported import export
from mqa import Decoder
from mqa.plan import CacheFormat, Model, cache_bytes

KV_HEADS = {"MHA": 9, "GQA": 3, "MQA": 1}
# The variants that compute what the trained model computes. One KV head is the mean of its three.
EXACT = ("MHA", "GQA")


@dataclass(frozen=True)
class Variant:
    """The model with `num_kv_heads` KV heads, in Python and as a TorchScript file."""

    name: str
    num_kv_heads: int
    model: Decoder
    file: Path

    def cache_bytes(self, context: int) -> int:
        """Bytes of a float32 cache of `context` tokens."""
        config = self.model.config
        attention = Model(
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
        ).as_configured()
        return cache_bytes(attention, CacheFormat("float32"), context=context)


def make_variants(trained: Decoder, tokenizer_json: str, folder: Path) -> list[Variant]:
    """Converts `trained` to each of `KV_HEADS` and exports the results to `folder`."""
    models = {name: mqa.convert(trained, heads) for name, heads in KV_HEADS.items()}
    files = export(models, tokenizer_json, folder)
    return [Variant(name, KV_HEADS[name], models[name], files[name]) for name in models]
