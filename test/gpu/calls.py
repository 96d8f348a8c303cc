"""Calls of every kernel on a GPU, compared with the CPU: few and small, for compute-sanitizer.

compute-sanitizer --tool memcheck --error-exitcode 1 python test/gpu/calls.py
"""

import itertools

import torch
from torch import Tensor

import mqa

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
HEAD_DIMS = (64, 71, 128, 256, 576)
ROWS = ((1, 1), (8, 1), (5, 6), (16, 9))  # G, T
PAGE_SIZE = 24


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype)


def on_gpu(arguments: dict[str, object]) -> dict[str, object]:
    return {k: v.cuda() if isinstance(v, Tensor) else v for k, v in arguments.items()}


def compare(name: str, ours: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (ours.cpu().double() - expected.double()).abs().max().item()
    assert error <= tolerance * max(1.0, expected.abs().max().item()), f"{name}: {error}"


def attention_calls(dtype: torch.dtype, head_dim: int, group: int, tokens: int) -> None:
    batch, kv_heads, slots = 2, 2, 300
    value_dim = min(head_dim, 512)
    query = random(batch, kv_heads * group, tokens, head_dim, dtype=dtype)
    key = random(batch, kv_heads, slots, head_dim, dtype=dtype)
    value = random(batch, kv_heads, slots, value_dim, dtype=dtype)
    lengths = torch.tensor([slots, 131])
    key[1, :, 131:] = value[1, :, 131:] = torch.nan
    plain = {"query": query, "key": key, "value": value, "seq_lens": lengths}
    mask = torch.rand(batch, 1, tokens, slots) < 0.7
    for options in (
        {},
        {"is_causal": True, "window_left": 40},
        {"attn_mask": mask, "softcap": 20.0},
        {"alibi_slopes": torch.rand(kv_heads * group), "sinks": torch.randn(kv_heads * group)},
    ):
        call = {**plain, **options}
        for ours, expected in zip(
            mqa.attention_lse(**on_gpu(call)), mqa.attention_lse(**call), strict=True
        ):
            compare(f"{dtype} D{head_dim} {[*options]}", ours, expected, TOLERANCE[dtype])


def cache_calls(dtype: torch.dtype, cache_dtype: torch.dtype, head_dim: int) -> None:
    """Appends to a paged cache, on both devices, and attends over it."""
    batch, kv_heads, tokens, row_pages = 2, 2, 40, 4
    pages = batch * row_pages
    shape = (pages, kv_heads, PAGE_SIZE, head_dim)
    quantised = cache_dtype.itemsize == 1
    caches = [torch.zeros(shape, dtype=cache_dtype) for _ in range(2)]
    scales = [torch.zeros(shape[:3]) for _ in range(2)] if quantised else [None, None]
    append = {
        "key_cache": caches[0],
        "value_cache": caches[1],
        "key": random(batch, kv_heads, tokens, head_dim, dtype=dtype),
        "value": random(batch, kv_heads, tokens, head_dim, dtype=dtype),
        "positions": torch.tensor([0, 17]),
        "block_table": torch.randperm(pages, dtype=torch.int32).view(batch, row_pages),
        "key_scale": scales[0],
        "value_scale": scales[1],
    }
    gpu = on_gpu(append)
    mqa.kv_append(**append)
    mqa.kv_append(**gpu)
    for name in ("key_cache", "value_cache"):
        assert torch.equal(gpu[name].cpu().view(torch.uint8), append[name].view(torch.uint8)), name
    call = {
        "query": random(batch, kv_heads * 8, 1, head_dim, dtype=dtype),
        "key": append["key_cache"],
        "value": append["value_cache"],
        "seq_lens": torch.tensor([tokens, 17 + tokens]),
        "block_table": append["block_table"],
        "key_scale": scales[0],
        "value_scale": scales[1],
    }
    ours, expected = mqa.attention(**on_gpu(call)), mqa.attention(**call)
    compare(f"{dtype} on {cache_dtype} D{head_dim}", ours, expected, TOLERANCE[dtype])


def merge_calls(dtype: torch.dtype) -> None:
    outs = [random(2, 3, 4, 80, dtype=dtype) for _ in range(3)]
    lses = [torch.randn(2, 3, 4) for _ in range(3)]
    lses[1][0] = -torch.inf
    ours = mqa.merge([x.cuda() for x in outs], [x.cuda() for x in lses])
    for a, b in zip(ours, mqa.merge(outs, lses), strict=True):
        compare(f"merge {dtype}", a, b, TOLERANCE[dtype])


def main() -> None:
    torch.manual_seed(0)
    for dtype, head_dim, (group, tokens) in itertools.product(DTYPES, HEAD_DIMS, ROWS):
        attention_calls(dtype, head_dim, group, tokens)
    caches = (None, torch.int8, torch.float8_e4m3fn)
    for dtype, cache_dtype, head_dim in itertools.product(DTYPES, caches, (64, 128, 256)):
        cache_calls(dtype, cache_dtype or dtype, head_dim)
    for dtype in DTYPES:
        merge_calls(dtype)
    torch.cuda.synchronize()
    print("every call on the GPU agrees with the CPU's")


if __name__ == "__main__":
    main()
