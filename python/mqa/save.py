"""Save a decoder as a Hugging Face folder."""

import json
import shutil
from pathlib import Path

from mqa.checkpoints.families import write_config
from mqa.checkpoints.layout import write_weights
from mqa.decoder import Decoder
from mqa.replacing import replacing_files
from mqa.tokenizer import load_tokenizer

WEIGHTS = "model.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


def save(model: Decoder, folder: str | Path, source: str | Path | None = None) -> None:
    """Write a decoder as `config.json` and `model.safetensors`.

    `mqa.load` reads it back with the same bits, given the same dtype. So does transformers, if
    one of its families has such models; otherwise model_type is "mqa".

    Args:
        model: the decoder.
        folder: is made if need be. Files of an earlier `save` are replaced, when the new ones are
            on the disk.
        source: a Hugging Face folder or a .gguf file whose tokenizer and chat template are to be
            there, too.

    Raises:
        OSError: the files cannot be written, and those of an earlier `save` are as they were; or
            `source` has no tokenizer.
        ValueError: the tokenizer cannot be read, or the folder has weights in several files.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = Path(folder)
    index = folder / f"{WEIGHTS}.index.json"
    if index.exists():
        raise ValueError(f"save: expected a folder without other weights, got one with {index}")
    fields, layout = write_config(model.config)
    fields["torch_dtype"] = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    with replacing_files(folder) as new:
        (new / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        if source is not None:
            _save_tokenizer(Path(source), new)
        weights = write_weights(model.config, layout, model.state_dict())
        try:
            save_file(weights, new / WEIGHTS, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"save: cannot write {folder / WEIGHTS} ({error})") from error
        shutil.copymode(new / "config.json", new / WEIGHTS)  # safetensors lets none but us read


def _save_tokenizer(source: Path, folder: Path) -> None:
    tokenizer = load_tokenizer(source)
    if source.is_file():
        tokenizer.hugging_face.save_pretrained(folder)
        return
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
