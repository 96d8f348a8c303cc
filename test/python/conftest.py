"""Shared set-up: every test starts from one seed, Hypothesis prints how to repeat a failure."""

import pytest
import torch
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("oracle")

settings.register_profile(
    "mqa", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("mqa")


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)
