"""Turns the KV heads of a group into a common basis, or finds the one basis they share best.

Two freedoms leave a model's logits as they are. A value may be multiplied by any orthogonal matrix
if the output projection undoes it. A key may be too if its queries are, as long as the rotary
embedding commutes with it: then each pair `(i, i + D / 2)` may be turned, by an angle of its own.
A pair is written as a complex number here, and a turn as a factor of it.

All functions take the moments of a group of g heads, `[g, D, g, D]`, see `mqa.moments`.
"""

import torch
from torch import Tensor

ITERATIONS = 30


def align_planes(moments: Tensor) -> Tensor:
    """Turns `[g, D, D]` of the heads' planes that make the heads as alike as possible."""
    cross = plane_moments(moments)
    turned = _leading_vector(cross)
    for _ in range(ITERATIONS):  # each step makes the heads more alike: `cross` is positive
        turned = torch.polar(torch.ones_like(turned.real), turned.angle())
        turned = (cross @ turned.unsqueeze(-1)).squeeze(-1)
    return _plane_maps(torch.polar(torch.ones_like(turned.real), -turned.angle()))


def share_planes(moments: Tensor) -> Tensor:
    """Maps `[g, D, D]` onto the direction that explains most of all heads, plane by plane.

    The sum of the mapped heads is the shared key, and a query mapped likewise sees through it.
    """
    return _plane_maps(_leading_vector(plane_moments(moments)).conj())


def align(moments: Tensor) -> Tensor:
    """Orthogonal matrices `[g, D, D]` that make the heads as alike as possible (Procrustes)."""
    turns = _polar_factor(share(moments))
    for _ in range(ITERATIONS):
        turns = _polar_factor(torch.einsum("jab,jbic->iac", turns, moments))
    return turns


def share(moments: Tensor) -> Tensor:
    """Maps `[g, D, D]` onto the D directions that explain most of all heads together."""
    g, head_dim = moments.shape[:2]
    vectors = torch.linalg.eigh(moments.reshape(g * head_dim, -1)).eigenvectors
    return vectors[:, -head_dim:].reshape(g, head_dim, head_dim).mT


def _polar_factor(matrices: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrices)
    return u @ vh


def plane_moments(moments: Tensor) -> Tensor:
    """`sum(z[i] * conj(z[j]))` for each plane, complex `[D / 2, g, g]`."""
    half = moments.size(1) // 2
    (xx, xy), (yx, yy) = (
        [
            moments[:, a : a + half, :, b : b + half].diagonal(dim1=1, dim2=3).permute(2, 0, 1)
            for b in (0, half)
        ]
        for a in (0, half)
    )
    return torch.complex(xx + yy, yx - xy)


def _leading_vector(cross: Tensor) -> Tensor:
    """Of Hermitian `[D / 2, g, g]`, `[D / 2, g]`."""
    return torch.linalg.eigh(cross).eigenvectors[..., -1]


def _plane_maps(factors: Tensor) -> Tensor:
    """Multiplication of the planes by `factors [D / 2, g]`, as matrices `[g, D, D]`."""
    x, y = (torch.diag_embed(part.mT) for part in (factors.real, factors.imag))
    return torch.cat([torch.cat([x, -y], 2), torch.cat([y, x], 2)], 1)
