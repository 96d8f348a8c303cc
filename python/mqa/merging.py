"""How the KV heads of a group become one, for keys and for values.

A merge is a matrix for each head, or none, and a factor for each head: the merged head is the sum
of the mapped heads times their factors. All functions take the moments `[g, D, g, D]` of a group's
g heads, see `mqa.moments`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mqa.alignment import align, align_planes, share, share_planes
from mqa.config import DecoderConfig

Merge = tuple[Tensor | None, Tensor]  # maps [g, D, D], factors [g]
MergeRule = Callable[[Tensor], Merge]


def mean(moments: Tensor) -> Merge:
    """The heads' mean as they are."""
    g = len(moments)
    return None, torch.full((g,), 1 / g, dtype=torch.float64)


def first(moments: Tensor) -> Merge:
    """The first head."""
    return None, torch.eye(len(moments), dtype=torch.float64)[0]


def shared(share: Callable[[Tensor], Tensor]) -> MergeRule:
    """What the heads have most in common, which maps by `share` sum up to."""

    def rule(moments: Tensor) -> Merge:
        return share(moments), torch.ones(len(moments), dtype=torch.float64)

    return rule


def aligned(align: Callable[[Tensor], Tensor]) -> MergeRule:
    """The mean of the heads turned by `align`, with the norm of the single heads."""

    def rule(moments: Tensor) -> Merge:
        turns = align(moments)
        g = len(turns)
        turned = torch.einsum("iab,ibjc,jac->ij", turns, moments, turns)
        norm = (turned.trace() / g / turned.mean()).sqrt()
        return turns, (norm / g).expand(g)

    return rule


# For keys it matters what the logits leave free: turns of the planes of the rotary embedding,
# without that any turn, with a norm of keys none.
RULES: dict[str, dict[str, MergeRule]] = {
    "mean": {"planes": mean, "all": mean, "none": mean},
    "first": {"planes": first, "all": first, "none": first},
    "svd": {"planes": shared(share_planes), "all": shared(share), "none": mean},
    "align": {"planes": aligned(align_planes), "all": aligned(align), "none": mean},
}
BLIND = ("mean", "first")  # methods that look at the number of heads alone


def key_freedom(config: DecoderConfig) -> str:
    """Which turns of keys and queries change no logit of a decoder."""
    if config.qk_norm:
        return "none"
    return "planes" if config.positions == "rotary" else "all"


def merge_groups(rule: MergeRule, moments: Tensor, num_groups: int) -> Merge:
    """Any maps `[H_kv, D, D]`, and factors `[groups, g]`, for the moments of a layer's heads."""
    g = len(moments) // num_groups
    groups = [slice(start, start + g) for start in range(0, len(moments), g)]
    merges = [rule(moments[group, :, group]) for group in groups]
    maps = [map_ for map_, _ in merges if map_ is not None]
    return torch.cat(maps) if maps else None, torch.stack([factors for _, factors in merges])
