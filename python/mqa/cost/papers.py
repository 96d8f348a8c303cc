"""What papers say about the same."""

from typing import Any

PAPERS: list[dict[str, Any]] = [
    {
        "name": "Shazeer 2019",
        "source": "arXiv:1911.02150",
        "claim": "decoding at batch 1,024, length 128: 46 us per token with MHA, 3.8 us with MQA",
        "batch": 1024,
        "context": 128,
        "mha_microseconds": 46.0,
        "mqa_microseconds": 3.8,
    },
    {
        "name": "Pope 2022",
        "source": "arXiv:2211.05102",
        "claim": "MQA: contexts up to 32 times as long",
        "times_longer_context": 32,
    },
    {
        "name": "Flash-Decoding 2023",
        "source": "https://pytorch.org/blog/flash-decoding",
        "claim": "a grid of shapes whose batch times length is constant",
    },
]
