"""Write a decoder as one TorchScript file that C++ can run."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from mqa.decoder import Decoder


def export_torchscript(model: Decoder, path: str | Path, tokenizer_json: str | None = None) -> None:
    """Write `model` to one `.pt` file for `torch.jit.load`, in Python or C++.

    The scripted module has the methods `new_cache(batch, capacity)`, `prefill(tokens, lengths,
    cache)`, `decode(tokens, positions, cache)` and `extend(tokens, lengths, positions, cache)` of
    `Decoder`. The extra file `config.json` holds the fields of `DecoderConfig` and `dtype`.

    Args:
        model: a decoder with `attention_impl="mqa"`. (The caches of "torch" are replaced in the
            caller's list, which a scripted module called from Python cannot do.)
        path: the file to write.
        tokenizer_json: the text of a Hugging Face `tokenizer.json`, stored as an extra file.

    Raises:
        ValueError: the model uses another attention, or the tokenizer is not that of
            Hugging Face's `tokenizers`.
    """
    if model.config.attention_impl != "mqa":
        raise ValueError(
            "export_torchscript: expected a model with attention_impl 'mqa', "
            f"got {model.config.attention_impl!r}"
        )
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    files = {"config.json": json.dumps(asdict(model.config) | {"dtype": dtype}, indent=2)}
    if tokenizer_json is not None:
        _check_tokenizer(tokenizer_json)
        files["tokenizer.json"] = tokenizer_json
    # A copy without gradients: the program that loads the file needs no guard against autograd.
    frozen = Decoder.from_weights(model.config, model.state_dict())
    torch.jit.save(torch.jit.script(frozen.eval()), str(path), _extra_files=files)


def _check_tokenizer(text: str) -> None:
    try:
        is_tokenizer = "model" in json.loads(text)
    except (json.JSONDecodeError, TypeError):
        is_tokenizer = False
    if not is_tokenizer:
        raise ValueError(
            "export_torchscript: expected tokenizer_json to be the text of a Hugging Face "
            f"tokenizer.json, got {text[:40]!r}"
        )
