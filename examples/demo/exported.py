"""The TorchScript files of the demo, kept between runs for as long as they stay valid."""

import hashlib
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import mqa
from mqa import Decoder

DEPENDENCIES = ("gguf", "tokenizers", "torch", "transformers")


def export(models: Mapping[str, Decoder], tokenizer_json: str, folder: Path) -> dict[str, Path]:
    """Exports each model to `<folder>/<fingerprint>/<name>.pt`, unless it is there already.

    Files of other fingerprints are deleted: a changed program never meets an old model.
    """
    current = folder / _fingerprint(tokenizer_json)
    for outdated in set(folder.glob("*")) - {current}:
        shutil.rmtree(outdated)
    current.mkdir(parents=True, exist_ok=True)
    paths = {name: current / f"{name}.pt" for name in models}
    for name, path in paths.items():
        if not path.exists():
            # An interrupted export must not pass for a finished one.
            partial = path.with_suffix(".partial")
            mqa.export_torchscript(models[name], partial, tokenizer_json)
            partial.rename(path)
    return paths


def _fingerprint(tokenizer_json: str) -> str:
    """A hash of what an exported model depends on: our sources, libraries and the tokenizer."""
    digest = hashlib.sha256(tokenizer_json.encode())
    for name in DEPENDENCIES:
        digest.update(f"{name}=={version(name)}\n".encode())
    for source in (*Path(mqa.__file__).parent.glob("*.py"), *Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
