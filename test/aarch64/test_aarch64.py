"""Builds the kernels and their tests for aarch64 and runs them in an emulator."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build/aarch64"
SYSROOT = Path("/usr/aarch64-linux-gnu")
GOOGLETEST = Path("/usr/src/googletest")  # from Debian; else CMake downloads the sources
PACKAGES = {
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "qemu-aarch64": "qemu-user",
}

# Of the attention tests those that cover most: the emulator is many times slower than a machine.
TESTS = [
    "Numeric.*",
    "Visibility.*",
    "Append*",
    "Allocations.*",
    "Generic/*",
    "*Attention.EqualsTheFormulaForAnyCall/generic_*",
    "*Attention.EqualsTheFormulaForLargeSizes/generic_float32",
    "*AttentionBits.*/generic_float32",
]


def run(*command: object) -> str:
    """Runs a command and returns what it printed; its error output is part of a failure."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def kernel_tests() -> Path:
    if platform.machine() == "aarch64":
        pytest.skip("this machine is aarch64: the C++ tests cover it")
    for program, package in PACKAGES.items():
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing (Debian package {package})")
    options = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    if GOOGLETEST.exists():
        options.append(f"-DFETCHCONTENT_SOURCE_DIR_GOOGLETEST={GOOGLETEST}")
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={HERE / 'toolchain.cmake'}"
    run("cmake", "-S", HERE, "-B", BUILD, toolchain, *options)
    run("cmake", "--build", BUILD, "--target", "kernel_tests")
    return BUILD / "kernel_tests"


def test_the_kernels_tests_pass(kernel_tests: Path) -> None:
    command = ["qemu-aarch64", "-L", SYSROOT, kernel_tests, f"--gtest_filter={':'.join(TESTS)}"]
    passed = re.search(r"PASSED  \] (\d+) tests", run(*command))
    assert passed is not None
    assert int(passed[1]) >= 30


def test_tiles_multiply_and_add_vectors_in_one_instruction(kernel_tests: Path) -> None:
    (tile,) = BUILD.glob("**/mqa_tile_generic.dir/**/tile.cpp.o")
    assembly = run("aarch64-linux-gnu-objdump", "--disassemble", tile)
    assert len(re.findall(r"\bfmla\s+v\d+\.4s", assembly)) > 10
    assert len(re.findall(r"\bfmla\s+v\d+\.2d", assembly)) > 10
