"""One decoder with fewer KV heads, or fewer heads, and as many parameters."""

from collections.abc import Sequence
from dataclasses import replace

from mqa.config import DecoderConfig
from mqa.decoder import Decoder


def variants(
    mha: DecoderConfig, kv_heads: Sequence[int], heads: Sequence[int] = ()
) -> dict[str, DecoderConfig]:
    """`mha`, and decoders of its size by name.

    Args:
        mha: a decoder with a KV head for each query head.
        kv_heads: numbers of KV heads, for GQA-n and MQA.
        heads: numbers of heads, for MHA with fewer of them.
    """
    configs = {"MHA": mha}
    for count in kv_heads:
        configs["MQA" if count == 1 else f"GQA-{count}"] = of_equal_size(mha, mha.num_heads, count)
    for count in heads:
        name = f"MHA, {count} head{'s' * (count > 1)}"
        configs[name] = of_equal_size(mha, count, count)
    return configs


def of_equal_size(mha: DecoderConfig, num_heads: int, num_kv_heads: int) -> DecoderConfig:
    """`mha` with other heads, and as many parameters.

    What fewer heads free in the projections goes into the feed-forward network, as in Shazeer,
    "Fast Transformer Decoding: One Write-Head is All You Need" (arXiv:1911.02150).
    """
    # A row of these projections is as long as one of the network's matrices is wide.
    freed_heads = 2 * (mha.num_heads - num_heads) + 2 * (mha.num_kv_heads - num_kv_heads)
    matrices = 3 if mha.gated else 2
    return replace(
        mha,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        intermediate_size=mha.intermediate_size + round(freed_heads * mha.head_dim / matrices),
    )


def num_parameters(config: DecoderConfig) -> int:
    """Of a decoder with this configuration."""
    return sum(weight.numel() for weight in Decoder(config).parameters())
