"""Other ways to say (a part of) the same attention call: the result must have the same bits."""

import torch
from torch import Tensor

from cases import Case, poisoned

LAYOUTS = ["contiguous", "transposed", "sliced", "strided"]
SLOTTED = ["key", "value", "key_scale", "value_scale"]  # dimension 2 counts slots


def restrided(x: Tensor, layout: str) -> Tensor:
    """`x` in other memory: heads and slots swapped, in a larger tensor, every second element."""
    if layout == "transposed" and x.dim() > 2:
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "sliced":
        room = poisoned(tuple(n + 2 for n in x.shape), x.dtype)
        room[(slice(1, -1),) * x.dim()] = x
        return room[(slice(1, -1),) * x.dim()]
    if layout == "strided":
        room = poisoned((*x.shape[:-1], 2 * x.size(-1)), x.dtype)
        room[..., ::2] = x
        return room[..., ::2]
    return x.contiguous()


def with_capacity(case: Case, capacity: int) -> Case:
    """A dense cache with room for more slots."""
    B, _, S, _ = case["key"].shape
    longer = case.but(seq_lens=case.get("seq_lens", torch.full((B,), S)))
    for name in SLOTTED:
        if name in case and case[name].dim() > 1:
            longer[name] = _padded(case[name], 2, capacity)
    mask = case.get("attn_mask")
    if mask is not None and mask.size(-1) == S:
        longer["attn_mask"] = _padded(mask, mask.dim() - 1, capacity)
    return longer


def paged(case: Case, page_size: int) -> Case:
    """Three times too many pages in random order; table entries past the used pages are garbage."""
    pages = -(-case["key"].size(2) // page_size)
    pool = with_capacity(case, pages * page_size)
    used = -(-pool["seq_lens"].long().view(-1, 1) // page_size)
    B = len(used)
    table = torch.randperm(3 * B * pages)[: B * pages].view(B, pages)
    for name in SLOTTED:
        if name in case and case[name].dim() > 1:
            rows = pool[name].unflatten(2, (pages, page_size)).transpose(1, 2)
            pool[name] = poisoned((3 * B * pages, *rows.shape[2:]), rows.dtype)
            pool[name][table] = rows
    unused, garbage = torch.arange(pages) >= used, torch.tensor([-1, 2**31 - 1])
    table = torch.where(unused, garbage[torch.arange(pages) % 2], table)
    return pool.but(block_table=table.int())


def packed(case: Case) -> Case:
    """Packed keys; a dense cache gets as many slots as sixteen divides."""
    if "block_table" not in case:
        case = with_capacity(case, -(-case["key"].size(2) // 16) * 16)
    return case.but(key=pack(case["key"]))


def pack(key: Tensor) -> Tensor:
    """`[..., S, D]` to `[..., S / 16, D, 16]`."""
    return key.unflatten(2, (key.size(2) // 16, 16)).transpose(3, 4).contiguous()


def unpack(key: Tensor) -> Tensor:
    """`[..., S / 16, D, 16]` to `[..., S, D]`."""
    return key.transpose(3, 4).flatten(2, 3)


def batch_rows(case: Case, rows: list[int]) -> Case:
    """Some sequences of the batch, in another order."""
    index = torch.tensor(rows, dtype=torch.long)
    part = case.but(query=case["query"][index])
    for name in ("seq_lens", "block_table"):
        if name in case:
            part[name] = case[name][index]
    for name in SLOTTED:
        if name in case and "block_table" not in case and case[name].dim() > 1:
            part[name] = case[name][index]
    if "alibi_slopes" in case and case["alibi_slopes"].dim() == 2:
        part["alibi_slopes"] = case["alibi_slopes"][index]
    return _mask_part(part, 0, index)


def query_rows(case: Case, start: int, stop: int) -> Case:
    """The queries `start..stop` of a causal call, as if the later tokens were not there yet."""
    B, _, T, _ = case["query"].shape
    lens = case.get("seq_lens", torch.full((B,), case["key"].size(2)))
    part = case.but(query=case["query"][:, :, start:stop], seq_lens=lens - (T - stop))
    return _mask_part(part, 2, torch.arange(start, stop))


def query_head(case: Case, head: int) -> Case:
    """One query head with its KV head."""
    kv_head = head // (case["query"].size(1) // case["key"].size(1))
    part = case.but(query=case["query"][:, head : head + 1])
    for name in SLOTTED:
        if name in case:
            dim = 0 if case[name].dim() == 1 else 1
            part[name] = case[name].narrow(dim, kv_head, 1)
    for name in ("alibi_slopes", "sinks"):
        if name in case:
            part[name] = case[name][..., head : head + 1]
    return _mask_part(part, 1, torch.tensor([head]))


def _mask_part(case: Case, dim: int, index: Tensor) -> Case:
    mask = case.get("attn_mask")
    if mask is None:
        return case
    mask = mask[(None,) * (4 - mask.dim())]
    return case.but(attn_mask=mask if mask.size(dim) == 1 else mask.index_select(dim, index))


def _padded(x: Tensor, dim: int, size: int) -> Tensor:
    room = poisoned((*x.shape[:dim], size - x.size(dim), *x.shape[dim + 1 :]), x.dtype)
    return torch.cat([x, room], dim)
