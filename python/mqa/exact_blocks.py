"""Blocks of tokens whose logits have exactly the bits of single steps."""

from weakref import WeakKeyDictionary

import torch

from mqa.decoder import Decoder
from mqa.projection import Linear

_FOUND: WeakKeyDictionary[Decoder, dict[tuple[object, ...], bool]] = WeakKeyDictionary()


@torch.no_grad()
def with_exact_blocks(model: Decoder, num_tokens: int) -> Decoder:
    """A decoder that gives blocks of up to `num_tokens` tokens the bits of single steps.

    That is, of `decode` for each token and sequence alone. Attention always has these bits. Those
    of matrix products may depend on how many rows there are, which is the machine's and the dtype's
    affair, so it is tried out. Where they do, as in float32, the returned decoder multiplies row by
    row: exact, but no faster than steps.

    Args:
        model: a decoder with `attention_impl="mqa"`.
        num_tokens: the most tokens that a block will have, those of all sequences together.

    Returns:
        `model` itself, or a decoder that shares its weights. Use it on the caches of `model`.

    Raises:
        ValueError: the model uses another attention, `num_tokens` is out of range, or on this
            machine no block of this model has the bits of single steps.
    """
    if model.config.attention_impl != "mqa":
        raise ValueError(
            "with_exact_blocks: expected a model with attention_impl 'mqa', "
            f"got {model.config.attention_impl!r}"
        )
    if not 1 <= num_tokens <= model.max_position:
        raise ValueError(
            f"with_exact_blocks: expected num_tokens in [1, {model.max_position}] "
            f"(max_position), got {num_tokens}"
        )
    if _is_known_exact(model, model, num_tokens):
        return model
    row_by_row = Decoder.from_weights(model.config, model.state_dict())
    for module in row_by_row.modules():
        if isinstance(module, Linear | Decoder):
            module.row_by_row = True
    if not _is_known_exact(row_by_row, model, num_tokens):
        raise ValueError(
            "with_exact_blocks: expected a model whose blocks have the bits of single steps on "
            f"this machine, got one where blocks of up to {num_tokens} tokens differ"
        )
    return row_by_row


def _is_known_exact(blocks: Decoder, steps: Decoder, num_tokens: int) -> bool:
    """`_is_exact`, asked once for all that decides about bits."""
    dtype, threads = steps.embed_tokens.weight.dtype, torch.get_num_threads()
    setting = (dtype, threads, num_tokens, blocks.row_by_row)
    known = _FOUND.setdefault(steps, {})
    if setting not in known:
        known[setting] = _is_exact(blocks, steps, num_tokens)
    return known[setting]


def _is_exact(blocks: Decoder, steps: Decoder, num_tokens: int) -> bool:
    """Whether blocks of every size up to `num_tokens` have the bits of single steps."""
    device = steps.embed_tokens.weight.device
    tokens = torch.arange(num_tokens, device=device)[None] % steps.config.vocab_size
    start = torch.zeros(1, dtype=torch.int64, device=device)
    cache = steps.new_cache(1, num_tokens)
    single = [steps(tokens[:, t : t + 1], start + t, cache) for t in range(num_tokens)]
    return all(
        torch.equal(blocks(tokens[:, :size], start, cache), torch.cat(single[:size], 1))
        for size in range(2, num_tokens + 1)
    )
