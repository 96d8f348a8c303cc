"""Load a decoder from a GGUF file or from a Hugging Face folder."""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mqa.config import DecoderConfig
from mqa.decoder import Decoder
from mqa.llama_config import config_from_gguf, config_from_hf

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

GGUF_NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def load_gguf(path: str | Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """Load a LLaMA model from a GGUF file, dequantised to `dtype`.

    Args:
        path: the file.
        dtype: float32, bfloat16 or float16; also the dtype of the computation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a readable GGUF file, or not of a plain LLaMA model with all its
            tensors.
    """
    from gguf import GGUFReader, dequantize

    path = Path(path)
    _check_dtype(dtype, "load_gguf")
    if not path.is_file():
        raise FileNotFoundError(f"load_gguf: no file {path}")
    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"load_gguf: {path} is no readable GGUF file ({error})") from error

    tensors = {_name_of_gguf(tensor.name): tensor for tensor in reader.tensors}
    if "embed_tokens.weight" not in tensors:
        raise ValueError(f"load_gguf: {path} has no tensor token_embd.weight")
    vocab_size = int(tensors["embed_tokens.weight"].shape[1])
    try:
        config = config_from_gguf(fields, vocab_size, tied="lm_head.weight" not in tensors)
    except (TypeError, ValueError) as error:
        raise ValueError(f"load_gguf: {path}: {error}") from error

    def read(name: str) -> Tensor:
        tensor = tensors[name]
        try:
            return torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        except NotImplementedError as error:
            raise ValueError(f"load_gguf: {path}: tensor {tensor.name}: {error}") from error

    weights = _read_weights(config, tensors.keys(), read, dtype, f"load_gguf: {path}")
    for name, weight in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weights[name] = _halves_from_pairs(weight, config.head_dim)
    return Decoder.from_weights(config, weights)


def load_safetensors(folder: str | Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """Load a LLaMA model from a Hugging Face folder.

    Args:
        folder: has `config.json` and `model.safetensors`, or several files and their
            `model.safetensors.index.json`.
        dtype: float32, bfloat16 or float16; also the dtype of the computation.

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: a file is unreadable, or the model is not a plain LLaMA with all its tensors.
    """
    from safetensors import SafetensorError, safe_open

    folder = Path(folder)
    _check_dtype(dtype, "load_safetensors")
    fields = _read_json(folder / "config.json")
    try:
        config = config_from_hf(fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"load_safetensors: {folder / 'config.json'}: {error}") from error

    tensors: dict[str, tuple[Any, str]] = {}
    for file in _shards(folder):
        try:
            shard: Any = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"load_safetensors: cannot read {file} ({error})") from error
        tensors |= {key.removeprefix("model."): (shard, key) for key in shard.offset_keys()}
    # Older files repeat the tied matrix, or store the rotary frequencies, which follow from theta.
    names = {name for name in tensors if not name.endswith("rotary_emb.inv_freq")}
    if config.tie_embeddings:
        names.discard("lm_head.weight")

    def read(name: str) -> Tensor:
        shard, key = tensors[name]
        return shard.get_tensor(key)

    weights = _read_weights(config, names, read, dtype, f"load_safetensors: {folder}")
    return Decoder.from_weights(config, weights)


def _read_weights(
    config: DecoderConfig,
    names: Collection[str],
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
    source: str,
) -> dict[str, Tensor]:
    """Read every tensor that `config` asks for, one by one; refuse any other."""
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in Decoder(config).state_dict().items()}
    missing = sorted(shapes.keys() - names)
    if missing:
        raise ValueError(f"{source}: {len(missing)} tensors are missing, the first is {missing[0]}")
    unknown = sorted(set(names) - shapes.keys())
    if unknown:
        raise ValueError(f"{source}: expected a plain LLaMA model, got one with {unknown[0]}")
    weights = {}
    for name, shape in shapes.items():
        weight = read(name)
        if weight.shape != shape:
            raise ValueError(
                f"{source}: expected {name} of shape {list(shape)}, got {list(weight.shape)}"
            )
        weights[name] = weight.to(dtype)
    return weights


def _name_of_gguf(name: str) -> str:
    """`blk.0.attn_q.weight` to `layers.0.self_attn.q_proj.weight`; unknown names stay."""
    *block, stem, kind = name.split(".")
    if stem not in GGUF_NAMES or kind != "weight":
        return name
    return ".".join(
        ["layers", *block[1:], GGUF_NAMES[stem], kind] if block else [GGUF_NAMES[stem], kind]
    )


def _halves_from_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of a query or key projection from GGUF's rotary layout.

    There, neighbours `(2 i, 2 i + 1)` of a head are turned together; here `(i, i + D / 2)`.
    """
    pairs = weight.view(-1, head_dim // 2, 2, weight.size(1))
    return pairs.transpose(1, 2).flatten(0, 2)


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
