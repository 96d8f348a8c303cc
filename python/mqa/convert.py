"""Change the number of KV heads of a decoder: MHA to GQA to MQA, and back."""

from dataclasses import replace

from torch import Tensor

from mqa.decoder import Decoder
from mqa.grouping import similar
from mqa.kv_heads import KVHeads
from mqa.merging import BLIND, RULES, key_freedom, merge_groups
from mqa.moments import moments_of_text, moments_of_weights, unknown_moments

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
    - "svd": the subspace that holds most of all of them; for keys a direction for each plane of
      the rotary embedding. What maps the heads there goes into the query and output projections.
    - "align": every head is turned into a common basis first, which alone changes no logit, then
      they are averaged, and the average is given back the norm that it lost.

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
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    if num_kv_heads >= old:
        _repeat(weights, model, num_kv_heads)
        return Decoder.from_weights(config, weights)
    rules = RULES[method]
    if calibration is not None:
        known = moments_of_text(model, calibration)
    elif method in BLIND and groups == "neighbours":
        known = unknown_moments(model)
    else:
        known = moments_of_weights(model)
    for layer, moments in enumerate(known):
        heads = KVHeads.read(weights, layer, model.config)
        if groups == "similar":
            order = similar(moments, num_kv_heads).flatten()
            heads, moments = heads.reordered(order), moments.reordered(order)
        of_keys, of_values = rules[key_freedom(config)], rules["all"]
        keys = merge_groups(of_keys, moments.keys, moments.queries, num_kv_heads)
        values = merge_groups(of_values, moments.values, moments.outputs, num_kv_heads)
        heads.merged(num_kv_heads, keys, values).write(weights, layer)
    return Decoder.from_weights(config, weights)


def _repeat(weights: dict[str, Tensor], model: Decoder, num_kv_heads: int) -> None:
    times = num_kv_heads // model.config.num_kv_heads
    for name, weight in weights.items():
        if ".k_proj." in name or ".v_proj." in name:  # weight or bias
            heads = weight.unflatten(0, (-1, model.config.head_dim))
            weights[name] = heads.repeat_interleave(times, 0).flatten(0, 1)
