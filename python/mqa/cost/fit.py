"""How times grow with lengths."""

from collections.abc import Sequence

import torch
from torch import Tensor


def polynomial(lengths: Sequence[int], seconds: Sequence[float], degree: int) -> list[float]:
    """Coefficients c of `c[0] + c[1] n + ... + c[degree] n^degree`, by least squares.

    What counts is the error relative to the seconds: short lengths matter as much as long ones.
    """
    scale = max(lengths)  # keeps the powers of ordinary size
    times = torch.tensor(seconds, dtype=torch.float64)
    powers = _powers(torch.tensor(lengths, dtype=torch.float64) / scale, degree)
    # gelsd, unlike the default, also solves for fewer lengths than coefficients
    solution = torch.linalg.lstsq(
        powers / times[:, None], torch.ones_like(times)[:, None], driver="gelsd"
    ).solution.flatten()
    return [c / scale**power for power, c in enumerate(solution.tolist())]


def evaluate(coefficients: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """The polynomial's values."""
    return [sum(c * n**power for power, c in enumerate(coefficients)) for n in lengths]


def total(coefficients: Sequence[float]) -> list[float]:
    """Coefficients of the sum over 1, 2, ..., n, in its leading terms: of the integral."""
    return [0.0, *(c / (power + 1) for power, c in enumerate(coefficients))]


def sum_to(count: int, lengths: Sequence[int], seconds: Sequence[float]) -> float:
    """The sum over 1, 2, ..., count, interpolated linearly between the ascending lengths.

    What is shorter than the first length counts as that.
    """
    x, y = (torch.tensor(values, dtype=torch.float64) for values in (lengths, seconds))
    n = torch.arange(1, count + 1, dtype=torch.float64).clamp(min=lengths[0])
    right = torch.searchsorted(x, n).clamp(min=1)
    left = right - 1
    slope = (y[right] - y[left]) / (x[right] - x[left])
    return float((y[left] + slope * (n - x[left])).sum())


def exponent(lengths: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope of the line through the logarithms: 1 is linear growth, 2 quadratic."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (lengths, seconds))
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / (x * x).sum())


def _powers(x: Tensor, degree: int) -> Tensor:
    return torch.stack([x**power for power in range(degree + 1)], dim=1)
