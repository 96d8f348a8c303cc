"""Turns the KV heads of a group into a common basis, or finds the one basis they share best.

Two freedoms leave a model's logits as they are. A value may be multiplied by any orthogonal matrix
if the output projection undoes it. A key may be too if its queries are, as long as the rotary
embedding commutes with it: then each pair `(i, i + D / 2)` may be turned, by an angle of its own.
A pair is written as a complex number here, and a turn as a factor of it. If keys are normalised
with a weight for each element, only the signs of pairs are left.

All functions take the moments of a group of g heads, `[g, D, g, D]`, see `mqa.moments`.
"""

import torch
from torch import Tensor

ITERATIONS = 30
NEGLIGIBLE = 1e-6  # share of the largest weight that a direction has at least


def align_planes(moments: Tensor) -> Tensor:
    """Turns `[g, D, D]` of the heads' planes that make the heads as alike as possible."""
    cross = plane_moments(moments)
    turned = _leading_vector(cross)
    for _ in range(ITERATIONS):  # each step makes the heads more alike: `cross` is positive
        turned = torch.polar(torch.ones_like(turned.real), turned.angle())
        turned = (cross @ turned.unsqueeze(-1)).squeeze(-1)
    return _plane_maps(torch.polar(torch.ones_like(turned.real), -turned.angle()))


def align_signs(moments: Tensor) -> Tensor:
    """Signs of the heads' planes, as diagonal matrices `[g, D, D]`, that make the heads alike."""
    cross = plane_moments(moments).real
    signs = _signs(_leading_vector(cross))
    for _ in range(ITERATIONS):
        signs = _signs((cross @ signs.unsqueeze(-1)).squeeze(-1))
    return _plane_maps(signs.to(torch.complex128))


def share_planes(moments: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Like `share`, plane by plane."""
    power = weights.diagonal(dim1=1, dim2=2).unflatten(1, (2, -1)).sum(1).mT
    root = (power + NEGLIGIBLE * power.max()).sqrt()
    cross = plane_moments(moments)
    vector = _leading_vector(root.unsqueeze(-1) * cross * root.unsqueeze(-2)).conj()
    into = vector * root
    merged = torch.einsum("pi,pij,pj->p", into, cross, into.conj()).real
    size = _relative_size(cross.diagonal(dim1=1, dim2=2).real.mean(1), merged).unsqueeze(1)
    return _plane_maps(into * size), _plane_maps(vector / (root * size))


def align(moments: Tensor) -> Tensor:
    """Orthogonal matrices `[g, D, D]` that make the heads as alike as possible (Procrustes)."""
    turns = _polar_factor(_leading_space(moments))
    for _ in range(ITERATIONS):
        turns = _polar_factor(torch.einsum("jab,jbic->iac", turns, moments))
    return turns


def share(moments: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Maps `[g, D, D]` onto the D directions that explain most of all heads, and back.

    The sum of the mapped heads is the shared one, and the transposed maps back make of it
    an approximation of each head. No other directions have smaller errors e, measured as
    `e @ weights[i] @ e` and summed over heads. The shared head is as large as the single ones: a
    matter of taste for what the model computes, but not for rounding nor for further training.
    """
    root, inverse = _roots(weights)
    space = _leading_space(torch.einsum("iab,ibjc,jcd->iajd", root, moments, root))
    into = space @ root
    merged = torch.einsum("iab,ibjc,jac->", into, moments, into)
    size = _relative_size(torch.einsum("iaia->", moments) / len(moments), merged)
    return into * size, space @ inverse / size


def _relative_size(wanted: Tensor, present: Tensor) -> Tensor:
    """The factor from one size, given as mean squares, to another; 1 where there is nothing."""
    return torch.where((wanted > 0) & (present > 0), (wanted / present).sqrt(), 1.0)


def _leading_space(moments: Tensor) -> Tensor:
    """The D directions with the largest moments, as maps `[g, D, D]`."""
    g, head_dim = moments.shape[:2]
    vectors = torch.linalg.eigh(moments.reshape(g * head_dim, -1)).eigenvectors
    return vectors[:, -head_dim:].reshape(g, head_dim, head_dim).mT


def _roots(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square roots of positive `[g, D, D]`, and their inverses."""
    values, vectors = torch.linalg.eigh(matrices)
    root = (values.clamp_min(0) + NEGLIGIBLE * values.max()).sqrt().unsqueeze(-2)
    return vectors * root @ vectors.mT, vectors / root @ vectors.mT


def _polar_factor(matrices: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrices)
    return u @ vh


def _signs(numbers: Tensor) -> Tensor:
    """1 or -1, and 1 for 0."""
    return torch.ones_like(numbers).copysign(numbers + 0.0)


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
