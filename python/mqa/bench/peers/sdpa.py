"""PyTorch's scaled_dot_product_attention, in the ways that do not copy the cache."""

from __future__ import annotations

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from mqa.bench.inputs import Inputs
from mqa.bench.peers.contender import Contender, UnsupportedError, refuse_quantised


def prepare_gqa(inputs: Inputs) -> Contender:
    """As documented: with enable_gqa."""
    refuse_quantised(inputs)
    query, caches, is_causal = inputs.query, inputs.caches, inputs.case.is_causal
    return Contender(
        lambda i: scaled_dot_product_attention(
            query, caches[i].key, caches[i].value, is_causal=is_causal, enable_gqa=True
        )
    )


def prepare_flash(inputs: Inputs) -> Contender:
    """The same, by the flash kernel and no other."""
    gqa = prepare_gqa(inputs).run

    def run(i: int) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return gqa(i)

    return Contender(run)


def prepare_folded(inputs: Inputs) -> Contender:
    """Query heads as query positions of their KV head, which works without masks alone."""
    refuse_quantised(inputs)
    if inputs.case.is_causal:
        raise UnsupportedError("cannot mask: heads stand where positions would")
    case, caches = inputs.case, inputs.caches
    query = inputs.query.view(case.batch, case.kv_heads, case.group, case.head_dim)  # T = 1
    return Contender(
        lambda i: scaled_dot_product_attention(query, caches[i].key, caches[i].value),
        lambda result: result.reshape(inputs.query.shape),
    )
