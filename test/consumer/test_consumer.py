"""Builds the project in this folder against every tree that offers `find_package(mqa)`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mqa

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD_TREE = ROOT / os.environ.get("MQA_BUILD_TREE", "build/release")


def run(*command: object, **environment: str) -> str:
    """Runs a command and returns what it printed; its error output is part of a failure."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def build_tree() -> Path:
    return BUILD_TREE


@pytest.fixture(scope="session")
def install_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("install")
    run("cmake", "--install", BUILD_TREE, "--prefix", prefix)
    return prefix


@pytest.fixture(scope="session")
def site_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds nothing but the package, as pip installs it from this tree."""
    target = tmp_path_factory.mktemp("site-packages")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps"]
    run(*pip, "--target", target, ROOT)
    return target


@pytest.fixture(scope="session")
def package_tree(site_packages: Path) -> Path:
    code = "import mqa; print(mqa.cmake_prefix_path)"
    prefix = Path(run(sys.executable, "-c", code, PYTHONPATH=str(site_packages)).strip())
    assert prefix.is_relative_to(site_packages)
    return prefix


def configure(binary_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["cmake", "-S", HERE, "-B", binary_dir, "-G", "Ninja", *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="session", params=["build_tree", "install_tree", "package_tree"])
def consumer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the consumer's programs, built against one of the trees."""
    prefix = request.getfixturevalue(request.param)
    binary_dir = tmp_path_factory.mktemp(f"consumer_{request.param}")
    prefixes = f"-DCMAKE_PREFIX_PATH={prefix};{torch.utils.cmake_prefix_path}"
    configured = configure(binary_dir, prefixes)
    assert configured.returncode == 0, configured.stderr
    assert f"mqa_DIR:PATH={prefix}" in (binary_dir / "CMakeCache.txt").read_text()
    run("cmake", "--build", binary_dir)
    return binary_dir


class AppendAndAttend(torch.nn.Module):
    """Appends one token to a cache and attends to it; takes no input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("query", torch.randn(2, 4, 1, 8))
        self.register_buffer("token", torch.randn(2, 1, 1, 8))
        self.register_buffer("cache", torch.randn(2, 1, 5, 8))
        self.register_buffer("positions", torch.tensor([3, 0]))

    def forward(self) -> torch.Tensor:
        cache = self.cache.clone()
        torch.ops.mqa.kv_append(cache, cache, self.token, self.token, self.positions)
        return torch.ops.mqa.attention(self.query, cache, cache, seq_lens=self.positions + 1)


def test_loads_a_model_that_uses_the_ops(consumer: Path, tmp_path: Path) -> None:
    model = AppendAndAttend()
    torch.jit.script(model).save(str(tmp_path / "model.pt"))
    printed = float(run(consumer / "run_model", tmp_path / "model.pt"))
    assert printed == model().sum().item()


def test_refuses_another_torch(install_tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "torch/share/cmake/Torch"
    other.mkdir(parents=True)
    (other / "TorchConfig.cmake").touch()
    (other / "TorchConfigVersion.cmake").write_text('set(PACKAGE_VERSION "2.99.0")')
    configured = configure(
        tmp_path / "build",
        f"-DCMAKE_PREFIX_PATH={install_tree}",
        f"-DTorch_DIR={other}",
    )
    assert configured.returncode != 0
    built_with = ".".join(torch.__version__.split(".")[:2])
    message = " ".join(configured.stderr.split())
    assert (
        f"mqa was built with torch {built_with} and cannot be used with torch 2.99 found in {other}"
    ) in message


def test_calls_the_cpp_api(consumer: Path) -> None:
    query = torch.arange(64.0).reshape(2, 4, 1, 8) / 64
    token = torch.arange(16.0).reshape(2, 1, 1, 8) / 16
    cache = torch.ones(2, 1, 5, 8)
    positions = torch.tensor([3, 0])
    mqa.kv_append(cache, cache, token, token, positions)
    expected = mqa.attention(query, cache, cache, seq_lens=positions + 1).sum().item()
    assert float(run(consumer / "call_ops")) == expected
