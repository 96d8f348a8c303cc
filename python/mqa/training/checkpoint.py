"""Checkpoints of a training, which goes on only if it is the same training."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from mqa.replacing import replacing_files

# What decides the bits of a training: its settings, and `digest` of its tensors.
Identity = Mapping[str, str | int | float | None]

UNREADABLE = (BadZipFile, UnpicklingError, RuntimeError, LookupError, TypeError, ValueError)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Tells other names, dtypes, shapes or elements apart."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        elements = tensor.detach().contiguous().flatten().view(torch.uint8)
        hashed.update(elements.numpy().data)
    return hashed.hexdigest()


def save_checkpoint(path: Path, identity: Identity, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint over the earlier one, which stays if that fails.

    Args:
        path: the file.
        identity: of the training.
        state: of tensors, numbers, strings, lists and dictionaries.

    Raises:
        OSError: the file cannot be written.
    """
    content = {"identity": dict(identity), "state": dict(state)}
    try:
        with replacing_files(path.parent) as new, open(new / path.name, "wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        # What the file says to torch.save is the context of what torch.save says.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error


def load_checkpoint(path: Path, identity: Identity) -> dict[str, Any]:
    """The state that `save_checkpoint` has written.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or of a training that differs in what `identity` says.
    """
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not look at checksums
        if damaged is not None:
            raise ValueError(f"wrong checksum of {damaged}")
        content = torch.load(path, weights_only=True)
        found, state = content["identity"], content["state"]
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is no intact checkpoint ({reason})") from error
    check_identity(path, found, identity)
    return dict(state)


def check_identity(path: Path, found: Identity, wanted: Identity) -> None:
    """Refuses what another training has left.

    Raises:
        ValueError: `found`, the identity in `path`, is not the wanted one.
    """
    different = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    if different:
        got = ", ".join(_describe(name, found.get(name), wanted.get(name)) for name in different)
        raise ValueError(f"expected {path} to be of this training, got one with another {got}")


def _describe(name: str, found: object, wanted: object) -> str:
    if {type(found), type(wanted)} <= {int, float, type(None)}:
        return f"{name} ({found}, not {wanted})"
    return name
