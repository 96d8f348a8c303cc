"""Change the number of KV heads of a decoder: MHA to GQA to MQA, and back."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from mqa.config import DecoderConfig
from mqa.decoder import Decoder
from mqa.grouping import similar
from mqa.kv_heads import KVHeads
from mqa.merging import BLIND, RULES, Merge, key_freedom, merge_groups
from mqa.moments import Moments, moments_of_text, moments_of_weights, unknown_moments

GROUPINGS = ("neighbours", "similar")


def convert(
    model: Decoder,
    num_kv_heads: int,
    method: str = "mean",
    *,
    calibration: Tensor | None = None,
    groups: str = "neighbours",
) -> Decoder:
    """A new decoder with `num_kv_heads` KV heads; `model` stays as it is.

    Fewer heads change what the model computes and call for further training; the methods differ
    in how much. More heads are repetitions, which give the same logits.

    - "mean" of the heads of a group (Ainslie et al., GQA, arXiv:2305.13245).
    - "first" of them.
    - "svd": the subspace that approximates all of them best, as far as scores and outputs feel
      it; for keys a direction for each plane of the rotary embedding. What leads there and back
      goes into the projections.
    - "align": every head is turned into a common basis first, which alone changes no logit, then
      they are averaged, and the average is given back the norm that it lost.

    If a decoder normalises keys (`qk_norm`), both average keys at one norm, with signs that make
    them alike: nothing else leaves logits as they are.

    Args:
        model: the decoder to convert.
        num_kv_heads: divides `num_heads`, and divides or is a multiple of the present number.
        method: how heads become one.
        calibration: tokens int64 `[B, T]` of a text. "svd", "align" and "similar" go by keys and
            values there; without a text by weights alone, which is worse.
        groups: which heads become one: "neighbours", or those that are most "similar" once turned.

    Raises:
        ValueError: `num_kv_heads` is not such a number, a name is unknown, or the calibration has
            fewer tokens than head_dim.
    """
    old = model.config.num_kv_heads
    config = replace(model.config, num_kv_heads=num_kv_heads)
    if old % num_kv_heads and num_kv_heads % old:
        raise ValueError(
            f"convert: expected a number of KV heads that divides {old} or is a multiple of it, "
            f"got {num_kv_heads}"
        )
    for name, value, choices in (("method", method, tuple(RULES)), ("groups", groups, GROUPINGS)):
        if value not in choices:
            raise ValueError(f"convert: expected {name} to be one of {choices}, got {value!r}")
    if num_kv_heads >= old:
        return Decoder.from_weights(config, _repeated(model, num_kv_heads // old))
    if calibration is not None:
        known = moments_of_text(model, calibration)
    elif method in BLIND and groups == "neighbours":
        known = unknown_moments(model)
    else:
        known = moments_of_weights(model)
    return merge_heads(model, num_kv_heads, method, known, groups)


def merge_heads(
    model: Decoder, num_kv_heads: int, method: str, known: Sequence[Moments], groups: str
) -> Decoder:
    """`convert` to fewer KV heads by moments of all layers that are known already."""
    config = replace(model.config, num_kv_heads=num_kv_heads)
    weights = _copied(model)
    for layer, moments in enumerate(known):
        heads = KVHeads.read(weights, layer, model.config)
        if groups == "similar":
            order = similar(moments, num_kv_heads).flatten()
            heads, moments = heads.reordered(order), moments.reordered(order)
        keys, values = _merges(config, method, moments, num_kv_heads)
        heads.merged(num_kv_heads, keys, values).write(weights, layer)
    return Decoder.from_weights(config, weights)


def turn_heads(model: Decoder, num_groups: int, known: Sequence[Moments]) -> Decoder:
    """The turns of "align" for that many groups without the merge: the same logits."""
    weights = _copied(model)
    for layer, moments in enumerate(known):
        keys, values = _merges(model.config, "align", moments, num_groups)
        heads = KVHeads.read(weights, layer, model.config)
        heads.turned(keys.back, values.back).write(weights, layer)
    return Decoder.from_weights(model.config, weights)


def _merges(
    config: DecoderConfig, method: str, moments: Moments, num_groups: int
) -> tuple[Merge, Merge]:
    """Of a layer's keys and values."""
    rules = RULES[method]
    of_keys, of_values = rules[key_freedom(config)], rules["all"]
    return (
        merge_groups(of_keys, moments.keys, moments.queries, num_groups),
        merge_groups(of_values, moments.values, moments.outputs, num_groups),
    )


def _repeated(model: Decoder, times: int) -> dict[str, Tensor]:
    weights = _copied(model)
    for name, weight in weights.items():
        if ".k_proj." in name or ".v_proj." in name:  # weight or bias
            heads = weight.unflatten(0, (-1, model.config.head_dim))
            weights[name] = heads.repeat_interleave(times, 0).flatten(0, 1)
    return weights


def _copied(model: Decoder) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}
