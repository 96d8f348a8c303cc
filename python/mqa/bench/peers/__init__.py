"""Everything that is timed: `mqa` and its peers, by name."""

from __future__ import annotations

from mqa.bench.peers import flash, flex, matmul, ort, ours, sdpa, vllm
from mqa.bench.peers.contender import Prepare

OURS = "mqa"
OURS_UNQUANTISED = "mqa, bfloat16 cache"
OURS_PACKED = "mqa, packed keys"
SDPA = "SDPA"

PEERS: dict[str, Prepare] = {
    SDPA: sdpa.prepare_gqa,
    "SDPA flash": sdpa.prepare_flash,
    "SDPA folded": sdpa.prepare_folded,
    "FlexAttention": flex.prepare,
    "matmul+softmax": matmul.prepare,
    "onnxruntime": ort.prepare,
    "vLLM": vllm.prepare,
    "FlashAttention": flash.prepare_attention,
    "FlashInfer": flash.prepare_infer,
}

CONTENDERS: dict[str, Prepare] = {
    OURS: ours.prepare,
    OURS_UNQUANTISED: ours.prepare_unquantised,
    OURS_PACKED: ours.prepare_packed,
    **PEERS,
}
