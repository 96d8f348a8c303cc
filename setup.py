"""Runs CMake as the package's extension build; everything else is in pyproject.toml."""

import os
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Builds the library and installs it, its headers and its CMake config into the package.

    An editable install shares the build tree of the preset `release`. A wheel has its own tree for
    each torch, because the library works only with the torch it was built with.
    """

    def run(self) -> None:
        """Configures, builds and installs."""
        if self.editable_mode:
            tree, package, options = ROOT / "build/release", ROOT / "python/mqa", []
        else:
            tree = ROOT / f"build/wheel-torch-{version('torch')}"
            package = Path(self.build_lib).resolve() / "mqa"
            options = ["-DMQA_BUILD_TESTS=OFF", "-DMQA_BUILD_EXAMPLES=OFF"]
        python = f"-DPython_EXECUTABLE={sys.executable}"
        cmake("--preset", "release", "-B", str(tree), python, *options)
        cmake("--build", str(tree))
        cmake("--install", str(tree), "--prefix", str(package))


def cmake(*arguments: str) -> None:
    """Runs the cmake and ninja of this Python environment, else those on the PATH."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    subprocess.run(["cmake", *arguments], check=True, cwd=ROOT, env={**os.environ, "PATH": path})


setup(ext_modules=[Extension("mqa.lib", sources=[])], cmdclass={"build_ext": CMakeBuild})
