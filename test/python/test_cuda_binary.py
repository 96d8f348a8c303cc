"""What nvcc made of the CUDA kernels, read from the library: no GPU is needed.

MQA_BUILD_TREE=build/distribution looks at the kernels for all architectures.
"""

import importlib.util
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from programs import BUILD_TREE

pytestmark = pytest.mark.usefixtures("built_with_cuda")

LIBRARY = BUILD_TREE / "lib/libmqa.so"


ARCHITECTURE, KERNEL = re.compile(r"^arch = (\S+)"), re.compile(r"\sFunction :? ?([^\s:]+)")
TENSOR_CORES, ASYNCHRONOUS_LOAD, LOCAL_MEMORY = "HMMA", "LDGSTS", {"LDL", "STL"}
SMALL_TILE = "cuda6attendINS1_4TileILi64ELi64ELi1E"  # head_dim 64, 16 rows: soon disassembled


def cuobjdump(*options: str) -> Iterator[tuple[str, str, str]]:
    """What it prints of every kernel: architecture, kernel, line."""
    tool = shutil.which("cuobjdump")
    if tool is None and (triton := importlib.util.find_spec("triton")) is not None:
        tool = f"{Path(str(triton.origin)).parent}/backends/nvidia/bin/cuobjdump"
    if tool is None or not Path(tool).exists():
        pytest.skip("no cuobjdump here, neither of a CUDA toolkit nor of triton, a part of torch")
    architecture = kernel = ""
    with subprocess.Popen(
        [tool, *options, LIBRARY],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # says of every object what is not in it
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if match := ARCHITECTURE.search(line):
                architecture, kernel = match[1], ""
            elif match := KERNEL.search(line):
                kernel = match[1]
            elif kernel:
                yield architecture, kernel, line
    assert process.returncode == 0


@cache
def resources() -> dict[tuple[str, str], dict[str, int]]:
    """Registers and bytes of memory of every kernel, by architecture and name."""
    return {
        (architecture, kernel): {key: int(n) for key, n in re.findall(r"([A-Z]+):(\d+)", line)}
        for architecture, kernel, line in cuobjdump("--dump-resource-usage")
        if "STACK:" in line
    }


def test_every_architecture_has_every_kernel() -> None:
    by_architecture = defaultdict(set)
    for architecture, kernel in resources():
        by_architecture[architecture].add(kernel)
    first, *others = by_architecture.values()
    assert all(kernels == first for kernels in others)
    for name in ("attend", "combine", "differentiate", "append", "merge"):
        assert any(name in kernel for kernel in first), name


def test_no_kernel_spills_or_has_a_stack_frame() -> None:
    assert resources()
    spilling = {
        kernel: usage for kernel, usage in resources().items() if usage["STACK"] or usage["LOCAL"]
    }
    assert not spilling, "\n".join(map(str, spilling.items()))


def test_attention_loads_asynchronously_into_tensor_cores() -> None:
    """float32 is computed in float32: no tensor cores there."""
    small = sorted({kernel for _, kernel in resources() if SMALL_TILE in kernel})
    found: dict[tuple[str, str], set[str]] = {key: set() for key in resources() if key[1] in small}
    for architecture, kernel, line in cuobjdump("-sass", "-fun", ",".join(small)):
        names = {TENSOR_CORES, ASYNCHRONOUS_LOAD, *LOCAL_MEMORY}
        found[architecture, kernel] |= {name for name in names if name in line}
    assert found
    for key, instructions in found.items():
        is_float32 = "Ef" in key[1]
        expected = {ASYNCHRONOUS_LOAD} if is_float32 else {ASYNCHRONOUS_LOAD, TENSOR_CORES}
        assert instructions == expected, key
