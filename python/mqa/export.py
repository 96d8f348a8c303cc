"""Write a decoder as one file that C++ can run: TorchScript or AOTInductor."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
import torch._inductor
from torch import Tensor, nn
from torch.export import Dim

from mqa.chat import ChatTemplate
from mqa.decoder import Decoder


def export_torchscript(
    model: Decoder,
    path: str | Path,
    tokenizer_json: str | None = None,
    chat_template: ChatTemplate | None = None,
) -> None:
    """Write `model` to one `.pt` file for `torch.jit.load`, in Python or C++.

    The scripted module has the methods `new_cache(batch, capacity)`, `prefill(tokens, lengths,
    cache)`, `decode(tokens, positions, cache)` and `extend(tokens, lengths, positions, cache)` of
    `Decoder`. The extra file `config.json` holds the fields of `DecoderConfig` and `dtype`.

    Args:
        model: a decoder with `attention_impl="mqa"`. (The caches of "torch" are replaced in the
            caller's list, which a scripted module called from Python cannot do.)
        path: the file to write.
        tokenizer_json: the text of a Hugging Face `tokenizer.json`, stored as an extra file.
        chat_template: how to ask a chat model. The extra file `chat.json` holds what it puts
            `before` and `after` the first message of a user, so that C++ needs no Jinja.

    Raises:
        ValueError: the model uses another attention, the tokenizer is not that of Hugging Face's
            `tokenizers`, or the chat template has no single place for a message.
    """
    files = _extra_files("export_torchscript", model, tokenizer_json, chat_template)
    torch.jit.save(torch.jit.script(_frozen(model)), str(path), _extra_files=files)


def export_aoti(
    model: Decoder,
    path: str | Path,
    tokenizer_json: str | None = None,
    chat_template: ChatTemplate | None = None,
) -> None:
    """Compile `model` with AOTInductor into one `.pt2` file, for Python or C++.

    `torch._inductor.aoti_load_package` gives its only function `f(tokens, lengths, positions,
    cache)`: `Decoder.extend`, for any batch, number of tokens and number of cache slots. C++ passes
    the tensors in one list, `[tokens, lengths, positions, key_0, value_0, ...]`, to
    `torch::inductor::AOTIModelPackageLoader::run`. The caches are written in place; tokens, lengths
    and positions out of range are an error before that. The loader's metadata hold `config.json`,
    with the fields of `DecoderConfig` and `dtype`, `tokenizer.json` and `chat.json`.

    It takes a C++ compiler and a minute or more. The file is made for CPUs like the one it is
    compiled on and for this version of torch.

    Args:
        model: a decoder on the CPU with `attention_impl="mqa"`. (The caches of "torch" are
            replaced, so they cannot be written in place.)
        path: the file to write; its name ends in `.pt2`.
        tokenizer_json: the text of a Hugging Face `tokenizer.json`, stored in the metadata.
        chat_template: how to ask a chat model, as for `export_torchscript`.

    Raises:
        ValueError: the model uses another attention or another device, the file would not be named
            `.pt2`, the tokenizer is not that of Hugging Face's `tokenizers`, or the chat template
            has no single place for a message.
    """
    metadata = _extra_files("export_aoti", model, tokenizer_json, chat_template)
    device = model.embed_tokens.weight.device
    if device.type != "cpu":
        raise ValueError(f"export_aoti: expected a model on the CPU, got one on {device}")
    if Path(path).suffix != ".pt2":
        raise ValueError(f"export_aoti: expected a path that ends in .pt2, got {os.fspath(path)}")
    with torch.no_grad():  # or nothing is frozen
        torch._inductor.aoti_compile_and_package(
            _exported(_frozen(model)),
            package_path=str(path),
            inductor_configs={
                "aot_inductor.metadata": metadata,
                "freezing": True,  # weights lie as matrix products want them
                "cpp.dynamic_threads": True,  # as many as the program has, not as the export had
                "aot_inductor.check_lowerbound": False,  # which would be 2
            },
        )


class _Extend(nn.Module):
    """The function to export, as the `forward` of a module."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, lengths: Tensor, positions: Tensor, cache: list[Tensor]
    ) -> Tensor:
        vocab_size, num_new = self.model.config.vocab_size, tokens.size(1)
        # Compiled loops cannot throw, and a refusal by `kv_append` goes unnoticed in torch 2.11.
        _require(tokens, 0, vocab_size - 1, f"tokens in [0, {vocab_size})")
        _require(positions, 0, cache[0].size(2) - num_new, "positions in [0, S - T]")
        return self.model.extend(tokens, lengths, positions, cache)


def _require(values: Tensor, low: int, high: int, expectation: str) -> None:
    is_within = ((values >= low) & (values <= high)).all()
    torch._assert_async(is_within, f"extend: expected {expectation}")


def _exported(model: Decoder) -> torch.export.ExportedProgram:
    B, T, S = Dim("B", min=1), Dim("T", min=1), Dim("S", min=1)
    tokens = torch.zeros(2, 3, dtype=torch.int64)  # a size of 1 would be taken for a constant
    lengths, positions = torch.ones_like(tokens[:, 0]), torch.zeros_like(tokens[:, 0])
    cache = model.new_cache(2, 4)
    return torch.export.export(
        _Extend(model),
        (tokens, lengths, positions, cache),
        dynamic_shapes=({0: B, 1: T}, {0: B}, {0: B}, [{0: B, 2: S}] * len(cache)),
    )


def _frozen(model: Decoder) -> Decoder:
    """A copy without gradients: the program that loads the file needs no guard against autograd."""
    return Decoder.from_weights(model.config, model.state_dict()).eval()


def _extra_files(
    door: str, model: Decoder, tokenizer_json: str | None, chat_template: ChatTemplate | None
) -> dict[str, str]:
    """What travels along with the model, by name."""
    if model.config.attention_impl != "mqa":
        raise ValueError(
            f"{door}: expected a model with attention_impl 'mqa', "
            f"got {model.config.attention_impl!r}"
        )
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    files = {"config.json": json.dumps(asdict(model.config) | {"dtype": dtype}, indent=2)}
    if tokenizer_json is not None:
        _check_tokenizer(door, tokenizer_json)
        files["tokenizer.json"] = tokenizer_json
    if chat_template is not None:
        before, after = chat_template.frame()
        files["chat.json"] = json.dumps({"before": before, "after": after})
    return files


def _check_tokenizer(door: str, text: str) -> None:
    try:
        is_tokenizer = "model" in json.loads(text)
    except (json.JSONDecodeError, TypeError):
        is_tokenizer = False
    if not is_tokenizer:
        raise ValueError(
            f"{door}: expected tokenizer_json to be the text of a Hugging Face "
            f"tokenizer.json, got {text[:40]!r}"
        )
