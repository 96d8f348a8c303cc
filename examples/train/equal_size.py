"""One decoder as MHA, GQA and MQA, with as many parameters in each."""

from dataclasses import replace

from mqa import Decoder, DecoderConfig


def equal_size_configs(mha: DecoderConfig, gqa_kv_heads: int) -> dict[str, DecoderConfig]:
    """`mha`, and the same with `gqa_kv_heads` KV heads and with one, each by its name.

    What the left-out heads free in `k_proj` and `v_proj` goes into the feed-forward network, as in
    Shazeer, "Fast Transformer Decoding: One Write-Head is All You Need" (2019).
    """
    kv_heads = {"MHA": mha.num_heads, "GQA": gqa_kv_heads, "MQA": 1}
    return {name: _with_kv_heads(mha, heads) for name, heads in kv_heads.items()}


def _with_kv_heads(mha: DecoderConfig, num_kv_heads: int) -> DecoderConfig:
    # A row of the two projections is as long as one of the network's three matrices is wide.
    freed_rows = 2 * (mha.num_heads - num_kv_heads) * mha.head_dim
    return replace(
        mha,
        num_kv_heads=num_kv_heads,
        intermediate_size=mha.intermediate_size + round(freed_rows / 3),
    )


def num_parameters(config: DecoderConfig) -> int:
    """Of a decoder with this configuration."""
    return sum(weight.numel() for weight in Decoder(config).parameters())
