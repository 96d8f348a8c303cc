"""Parts of a text that stand for all of it."""

import torch
from torch import Tensor


def spread_pieces(
    tokens: Tensor, num_tokens: int, context: int, first_token: int | None = None
) -> Tensor:
    """Pieces `[B, context]` from all over `tokens`, at least one and about `num_tokens` together.

    Args:
        tokens: int64 `[N]`, N >= context.
        num_tokens: of all pieces; no more than N are taken.
        context: of a piece.
        first_token: takes the place of the first of each piece, if given.
    """
    count = max(1, min(num_tokens, len(tokens)) // context)
    starts = torch.linspace(0, len(tokens) - context, count).long()
    pieces = tokens[starts[:, None] + torch.arange(context)]
    if first_token is not None:
        pieces[:, 0] = first_token
    return pieces
