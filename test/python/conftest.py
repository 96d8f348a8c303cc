"""Shared set-up: the seed, the devices to run on, how Hypothesis repeats a failure."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from devices import DEVICES, Ops
from doors import cuda_key

pytest.register_assert_rewrite("oracle")

settings.register_profile(
    "mqa", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("mqa")


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", params=DEVICES)
def ops(request: pytest.FixtureRequest) -> Ops:
    """Tests that take this run on every device."""
    return Ops(request.param)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests that use this run on every device and make all their tensors there."""
    if request.param == "cpu":
        yield
        return
    with torch.device(request.param):
        yield


@pytest.fixture(scope="session")
def built_with_cuda() -> None:
    """Tests that use this need no GPU, but the code for one."""
    with pytest.raises(RuntimeError) as raised:  # NotImplementedError is one too
        cuda_key("merge", {"outs": [torch.zeros(1)], "lses": [torch.zeros(1)]})
    if "built without CUDA" in str(raised.value):
        pytest.skip("mqa was built without CUDA")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Takes out what CUDA does not have by design: float64."""
    config.hook.pytest_deselected(items=[item for item in items if is_float64_on_cuda(item)])
    items[:] = [item for item in items if not is_float64_on_cuda(item)]


def is_float64_on_cuda(item: pytest.Item) -> bool:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return {"cuda", torch.float64} <= {
        x for x in parameters.values() if isinstance(x, str | torch.dtype)
    }
