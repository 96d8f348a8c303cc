"""onnxruntime's GroupQueryAttention on shared buffers for past and present."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mqa.bench.inputs import Inputs
from mqa.bench.peers.contender import Contender, UnsupportedError, refuse_quantised

# PyTorch's threads spin for 5 ms after their work, on the cores that onnxruntime's threads need.
PAUSE = 0.008


def prepare(inputs: Inputs) -> Contender:
    """A session with one node and, for each cache, a binding to its memory.

    The node writes the new tokens into the cache before it attends. They are the ones that are
    there already, so the other contenders see no change.
    """
    refuse_quantised(inputs)
    case = inputs.case
    if case.dtype == "bfloat16":
        raise UnsupportedError("its CPU kernel takes float32 and float16 only")
    onnxruntime: Any = import_module("onnxruntime")  # optional, and without types
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    # Or its threads would spin while the next contender works.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        _model(inputs), options, providers=["CPUExecutionProvider"]
    )

    def value(tensor: Tensor) -> Any:  # shares the memory
        return onnxruntime.OrtValue.ortvalue_from_numpy(tensor.numpy())

    def tokens_first(tensor: Tensor) -> Tensor:  # [B, H, T, D] to [B, T, H * D]
        return tensor.transpose(1, 2).flatten(2).contiguous()

    query = tokens_first(inputs.query)
    result = torch.empty_like(query)
    new = slice(case.context - case.tokens, case.context)
    shared = {
        "query": value(query),
        "key": value(tokens_first(inputs.caches[0].key[:, :, new])),
        "value": value(tokens_first(inputs.caches[0].value[:, :, new])),
        "last_positions": value(torch.full((case.batch,), case.context - 1, dtype=torch.int32)),
        "length": value(torch.tensor([case.context], dtype=torch.int32)),
    }
    out = value(result)
    bindings = []
    for cache in inputs.caches:
        binding = session.io_binding()
        keys, values = value(cache.key), value(cache.value)
        for name, tensor in {**shared, "past_keys": keys, "past_values": values}.items():
            binding.bind_ortvalue_input(name, tensor)
        outputs = {"out": out, "present_keys": keys, "present_values": values}
        for name, tensor in outputs.items():
            binding.bind_ortvalue_output(name, tensor)
        bindings.append(binding)

    return Contender(
        lambda i: session.run_with_iobinding(bindings[i]),
        lambda _: result.unflatten(2, (case.group, case.head_dim)).transpose(1, 2).clone(),
        PAUSE if case.threads > 1 else 0.0,
    )


def _model(inputs: Inputs) -> bytes:
    onnx: Any = import_module("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto

    case = inputs.case
    dtype = kinds.FLOAT if case.dtype == "float32" else kinds.FLOAT16
    query = [case.batch, case.tokens, case.group * case.head_dim]
    new = [case.batch, case.tokens, case.head_dim]
    cache = [case.batch, 1, case.context, case.head_dim]
    arguments = {
        "query": (dtype, query),
        "key": (dtype, new),
        "value": (dtype, new),
        "past_keys": (dtype, cache),
        "past_values": (dtype, cache),
        "last_positions": (kinds.INT32, [case.batch]),
        "length": (kinds.INT32, [1]),
    }
    results = {
        "out": (dtype, query),
        "present_keys": (dtype, cache),
        "present_values": (dtype, cache),
    }
    node = helper.make_node(
        "GroupQueryAttention",
        [*arguments],
        [*results],
        domain="com.microsoft",
        num_heads=case.group,
        kv_num_heads=1,
    )
    graph = helper.make_graph(
        [node],
        "attention",
        *(
            [helper.make_tensor_value_info(name, *kind) for name, kind in values.items()]
            for values in (arguments, results)
        ),
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
