"""How the KV heads of a group become one, for keys and for values.

A rule takes, for the g heads of a group, the moments `[g, D, g, D]` of their keys (or values) and
the weight of an error in these, `[g, D, D]`; see `mqa.moments` for both.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mqa.alignment import NEGLIGIBLE, align, align_planes, align_signs, share, share_planes
from mqa.config import DecoderConfig


@dataclass(frozen=True)
class Merge:
    """Matrices for every head before the merge, `[H_kv, D, D]`.

    Attributes:
        into: the merged head is the sum of these times the heads.
        back: multiply what meets a head: queries meet keys, the output projection meets values.
    """

    into: Tensor
    back: Tensor


MergeRule = Callable[[Tensor, Tensor], Merge]


def mean(moments: Tensor, weights: Tensor) -> Merge:
    """The heads' mean as they are."""
    same = _identities(moments)
    return Merge(same / len(same), same)


def first(moments: Tensor, weights: Tensor) -> Merge:
    """The first head."""
    same = _identities(moments)
    is_first = torch.arange(len(same)) == 0
    return Merge(same * is_first[:, None, None], same)


def shared(share: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> MergeRule:
    """What the heads have most in common."""
    return lambda moments, weights: Merge(*share(moments, weights))


def aligned(align: Callable[[Tensor], Tensor]) -> MergeRule:
    """The mean of the heads turned by `align`, with the norm of the single heads."""

    def rule(moments: Tensor, weights: Tensor) -> Merge:
        turns = align(moments)
        g = len(turns)
        turned = torch.einsum("iab,ibjc,jac->ij", turns, moments, turns)
        norm = (turned.trace() / g / turned.mean()).sqrt()
        return Merge(turns * norm / g, turns)

    return rule


def signed(moments: Tensor, weights: Tensor) -> Merge:
    """The mean of the heads at one norm, with the signs that make them most alike."""
    norms = torch.einsum("iaia->i", moments).sqrt()
    scales = (norms.mean() / norms.clamp_min(NEGLIGIBLE * norms.max()))[:, None, None]
    signs = align_signs(moments * scales[..., None] * scales[:, 0])
    return Merge(signs * scales / len(signs), signs)


# For keys it matters what the logits leave free: turns of the planes of the rotary embedding,
# without that any turn, with a norm of keys the signs of planes.
RULES: dict[str, dict[str, MergeRule]] = {
    "mean": {"planes": mean, "all": mean, "signs": mean},
    "first": {"planes": first, "all": first, "signs": first},
    "svd": {"planes": shared(share_planes), "all": shared(share), "signs": signed},
    "align": {"planes": aligned(align_planes), "all": aligned(align), "signs": signed},
}
BLIND = ("mean", "first")  # methods that look at the number of heads alone


def key_freedom(config: DecoderConfig) -> str:
    """Which turns of keys and queries change no logit of a decoder."""
    if config.qk_norm:
        return "signs"
    return "planes" if config.positions == "rotary" else "all"


def merge_groups(rule: MergeRule, moments: Tensor, weights: Tensor, num_groups: int) -> Merge:
    """The merges of all groups of a layer's heads."""
    g = len(moments) // num_groups
    groups = [slice(start, start + g) for start in range(0, len(moments), g)]
    merges = [rule(moments[group, :, group], weights[group]) for group in groups]
    return Merge(torch.cat([m.into for m in merges]), torch.cat([m.back for m in merges]))


def _identities(moments: Tensor) -> Tensor:
    g, head_dim = moments.shape[:2]
    return torch.eye(head_dim, dtype=torch.float64).expand(g, -1, -1)
