"""Files that are there as a whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file beside `path` and, once it lies on the disk, puts it in its place.

    Whatever breaks it off, even a loss of power, `path` has its old content or all of the new.

    Raises:
        OSError: the file cannot be written, for instance to a full disk; `path` is as it was.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name lies on the disk, too
    finally:
        os.close(folder)
