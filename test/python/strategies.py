"""Hypothesis strategies that draw whole attention calls."""

import torch
from hypothesis import strategies as st

from cases import FLOATS, QUANTISED, Case, build, fill_unused, quantised, random_mask
from transforms import LAYOUTS, paged, restrided, with_capacity

SIZES = st.integers(0, 80) | st.sampled_from([127, 128, 129, 255, 256, 257, 513, 1025])
HEAD_DIMS = st.sampled_from([1, 3, 8, 16, 17, 32, 64, 80, 128, 576])
PAGE_SIZES = st.sampled_from([1, 4, 16, 128])


@st.composite
def dense_cases(draw: st.DrawFn, dtypes: list[torch.dtype] = FLOATS) -> Case:
    """A call over a contiguous float cache, with any of the options."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    dtype, option_dtype = draw(st.sampled_from(dtypes)), torch.float32
    if draw(st.booleans()):
        option_dtype = dtype
    B, H_kv, G = draw(st.integers(0, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 9))
    T, S, D = draw(st.integers(0, 20)), draw(SIZES), draw(HEAD_DIMS)
    H_q = H_kv * G
    case = build(B=B, H_kv=H_kv, G=G, T=T, S=S, D=D, D_v=draw(st.just(D) | HEAD_DIMS), dtype=dtype)
    case["query"] *= draw(st.sampled_from([1, 8]))

    if draw(st.booleans()):
        shape = [n if draw(st.booleans()) else 1 for n in (B, H_q, T, S)]
        mask_dtype = draw(st.sampled_from([torch.bool, option_dtype]))
        case["attn_mask"] = random_mask(mask_dtype, tuple(shape[draw(st.integers(0, 3)) :]))
    if draw(st.booleans()):
        lens = draw(st.lists(st.sampled_from([0, S]) | st.integers(0, S), min_size=B, max_size=B))
        lens_dtype = draw(st.sampled_from([torch.int32, torch.int64]))
        case = fill_unused(case.but(seq_lens=torch.tensor(lens, dtype=lens_dtype)))
    case["is_causal"] = draw(st.booleans())
    for name in ("window_left", "window_right"):
        case[name] = draw(st.sampled_from([-1, -1, 0, 1, 7, 40]))
    case["scale"] = draw(st.sampled_from([None, 0.3]))
    case["softcap"] = draw(st.sampled_from([0.0, 0.0, 0.7, 30.0]))
    if draw(st.booleans()):
        shape = draw(st.sampled_from([(H_q,), (B, H_q)]))
        case["alibi_slopes"] = torch.rand(shape).to(option_dtype)
    if draw(st.booleans()):
        case["sinks"] = torch.randn(H_q).to(option_dtype)
    return case


@st.composite
def attention_cases(draw: st.DrawFn, dtypes: list[torch.dtype] = FLOATS) -> Case:
    """Any call: a float or 8-bit cache, dense or paged, every tensor with its own strides."""
    case = draw(dense_cases(dtypes))
    latent = case["value"].size(-1) <= case["key"].size(-1) and draw(st.booleans())
    if not latent and draw(st.booleans()):
        case = quantised(case, draw(st.sampled_from(QUANTISED)), per_head=draw(st.booleans()))
    is_paged = draw(st.booleans())
    if is_paged:
        page_size = draw(PAGE_SIZES)
        spare = draw(st.sampled_from([0, page_size]))
        case = paged(with_capacity(case, case["key"].size(2) + spare), page_size)

    for name, x in case.tensors().items():
        case[name] = restrided(x, draw(st.sampled_from(LAYOUTS)))
    if not is_paged and len(case["query"]) and draw(st.booleans()):
        lens = case.get("seq_lens", torch.zeros(1))
        for name in ("key", "value"):  # every sequence reads the cache of the longest
            case[name] = case[name][lens.argmax()].expand(case[name].shape)
    if latent:
        case["value"] = case["key"][..., : case["value"].size(-1)]
    return case
