"""Loads libmqa.so, which registers the operators under ``torch.ops.mqa``."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

_PACKAGE = Path(__file__).resolve().parent
_LIBRARY = _PACKAGE / "lib" / "libmqa.so"
_VERSION_FILE = _PACKAGE / "lib" / "torch_version.txt"

cmake_prefix_path = str(_PACKAGE)
"""For CMake's ``CMAKE_PREFIX_PATH``, so that ``find_package(mqa)`` finds this package."""


@cache
def load() -> None:
    """Registers the operators, once per process.

    Raises:
        ImportError: the library is missing, was built with another torch minor version, or another
            copy of it has registered the operators already.
        ValueError: the environment variable MQA_CPU_ISA holds no name of an instruction set.
    """
    if not _LIBRARY.exists():
        raise ImportError(
            f"mqa: expected the compiled library at {_LIBRARY}, found none: "
            "run scripts/setup, or pip install --no-build-isolation ."
        )
    built_with = _VERSION_FILE.read_text().strip()
    running = ".".join(torch.__version__.split(".")[:2])
    if running != built_with:
        raise ImportError(
            f"mqa: expected torch {built_with}, which it was built with, got torch {running}: "
            "build mqa again with the torch that is installed"
        )
    if torch._C._dispatch_has_kernel("mqa::attention"):
        raise ImportError(
            "mqa: expected to load the only copy of libmqa, but its operators are registered "
            "already: load one copy only"
        )
    torch.ops.load_library(str(_LIBRARY))
    torch.ops.mqa.cpu_isa()  # reads MQA_CPU_ISA: complain now and not in the first call
