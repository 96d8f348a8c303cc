"""Load a decoder from a Hugging Face folder or from a GGUF file."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mqa.checkpoints.families import read_config
from mqa.checkpoints.gguf_files import STOP_TOKENS, read_metadata
from mqa.checkpoints.layout import read_weights
from mqa.decoder import Decoder

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load(path: str | Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """Load a model from a Hugging Face folder or a GGUF file.

    Args:
        path: a folder, for `load_safetensors`, or a file whose name ends in .gguf, for `load_gguf`.
        dtype: float32, bfloat16 or float16; also the dtype of the computation.

    Raises:
        FileNotFoundError: there is no such folder or file, or one of the folder's files is missing.
        ValueError: it is something else, unreadable, or of a model that `Decoder` does not compute.
    """
    path = Path(path)
    if path.is_dir():
        return load_safetensors(path, dtype)
    if not path.exists():
        raise FileNotFoundError(f"load: no file or folder {path}")
    if path.suffix != ".gguf":
        raise ValueError(f"load: expected a Hugging Face folder or a .gguf file, got {path}")
    return load_gguf(path, dtype)


def load_gguf(path: str | Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """Load a LLaMA or Gemma 3 model from a GGUF file, dequantised to `dtype`.

    Args:
        path: the file.
        dtype: float32, bfloat16 or float16; also the dtype of the computation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a readable GGUF file, or not of such a model with all its tensors.
    """
    from gguf import GGUFReader, dequantize

    path = Path(path)
    _check_dtype(dtype, "load_gguf")
    if not path.is_file():
        raise FileNotFoundError(f"load_gguf: no file {path}")
    try:
        reader = GGUFReader(path)
        # The tokenizer's lists, hundreds of thousands of entries, would take seconds.
        metadata = {
            name: field.contents()
            for name, field in reader.fields.items()
            if not name.startswith("tokenizer.") or name in STOP_TOKENS
        }
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"load_gguf: {path} is no readable GGUF file ({error})") from error

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in tensors:
        raise ValueError(f"load_gguf: {path} has no tensor token_embd.weight")

    def read(name: str) -> Tensor:
        tensor = tensors[name]
        try:
            array = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise ValueError(f"tensor {name}: {error}") from error
        # A tensor that was not quantised is still the file's memory.
        return torch.from_numpy(array if array.flags.writeable else array.copy())

    vocab_size = int(tensors["token_embd.weight"].shape[1])
    try:
        config, layout = read_metadata(metadata, vocab_size, "output.weight" not in tensors)
        weights = read_weights(config, layout, tensors.keys(), read, dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"load_gguf: {path}: {error}") from error
    return Decoder.from_weights(config, weights)


def load_safetensors(folder: str | Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """Load a model from a Hugging Face folder.

    Args:
        folder: has `config.json` and `model.safetensors`, or several files and their
            `model.safetensors.index.json`. The families that `Decoder` computes are those of
            `mqa.checkpoints.families`.
        dtype: float32, bfloat16 or float16; also the dtype of the computation.

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: a file is unreadable, or not of such a model with all its tensors.
    """
    from safetensors import SafetensorError, safe_open

    folder = Path(folder)
    _check_dtype(dtype, "load_safetensors")
    fields = _read_json(folder / "config.json")
    try:
        config, layout = read_config(fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"load_safetensors: {folder / 'config.json'}: {error}") from error

    tensors: dict[str, tuple[Any, str]] = {}
    for file in _shards(folder):
        try:
            shard: Any = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"load_safetensors: cannot read {file} ({error})") from error
        tensors |= {key.removeprefix(layout.prefix): (shard, key) for key in shard.offset_keys()}
    names = {name for name in tensors if not name.endswith(layout.ignored)}
    if config.tie_embeddings:
        names.discard("lm_head.weight")  # some files repeat the tied matrix

    def read(name: str) -> Tensor:
        shard, key = tensors[name]
        return shard.get_tensor(key)

    try:
        weights = read_weights(config, layout, names, read, dtype)
    except ValueError as error:
        raise ValueError(f"load_safetensors: {folder}: {error}") from error
    return Decoder.from_weights(config, weights)


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        files = [folder / "model.safetensors"]
    else:
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"load_safetensors: {index} has no weight_map")
        files = [folder / name for name in sorted(set(weight_map.values()))]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"load_safetensors: no file {file}")
    return files


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"load_safetensors: no file {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"load_safetensors: {path} is no JSON file ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"load_safetensors: expected an object in {path}, got {content!r:.40}")
    return content


def _check_dtype(dtype: torch.dtype, where: str) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"{where}: expected dtype in {DTYPES}, got {dtype}")
