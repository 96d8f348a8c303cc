"""Which KV heads of a layer become one."""

import torch
from torch import Tensor

from mqa.alignment import plane_moments
from mqa.moments import Moments


def similar(moments: Moments, num_groups: int) -> Tensor:
    """Groups `[num_groups, heads of a group]` of heads that can be turned into likeness.

    Begins with neighbours and swaps two heads for as long as that makes the groups more alike.
    """
    likeness = _likeness(moments)
    num_heads = len(likeness)
    group = torch.arange(num_heads) // (num_heads // num_groups)
    while True:
        to_group = likeness @ torch.nn.functional.one_hot(group, num_groups).double()
        own = to_group.gather(1, group[:, None])
        moved = to_group[:, group] - own - likeness  # head a into the group that b leaves
        gain = moved + moved.mT
        gain[group[:, None] == group] = 0
        best = int(gain.argmax())
        a, b = divmod(best, num_heads)
        if gain[a, b] < 1e-9:
            return group.argsort(stable=True).view(num_groups, -1)
        group[[a, b]] = group[[b, a]]


def _likeness(moments: Moments) -> Tensor:
    """How much of two heads' keys and values agrees at best, `[H_kv, H_kv]`, zero with itself."""
    keys = plane_moments(moments.keys).abs().sum(0)
    values = torch.linalg.matrix_norm(moments.values.transpose(1, 2), ord="nuc")
    total = sum(_normalised(matrix) for matrix in (keys, values))
    assert isinstance(total, Tensor)
    return total.fill_diagonal_(0)


def _normalised(likeness: Tensor) -> Tensor:
    size = likeness.diagonal().sqrt()
    return likeness / (size[:, None] * size)
