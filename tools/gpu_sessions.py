"""Timings of products within onnxruntime on a GPU: CUDA graphs replayed one after the other, none waited for."""

import statistics
import time

import numpy as np
import onnxruntime as ort
import torch
from gpu_products import ROTATION_BYTES
from onnx import ValueInfoProto, helper

_BLOCK = 128


def replay_seconds(opened: ort.InferenceSession, binding: ort.IOBinding, graph: int = 0, replays: int = 30) -> float:
    """Median time of one run; `graph` numbers the CUDA graphs of a session that runs several shapes."""
    waiting, queued = ort.RunOptions(), ort.RunOptions()
    for options in (waiting, queued):
        options.add_run_config_entry("gpu_graph_id", str(graph))
    queued.add_run_config_entry("disable_synchronize_execution_providers", "1")
    times = []
    for _ in range(8):
        opened.run_with_iobinding(binding, waiting)
        began = time.perf_counter()
        for _ in range(replays):
            opened.run_with_iobinding(binding, queued)
        opened.run_with_iobinding(binding, waiting)
        times.append((time.perf_counter() - began) / (replays + 1))
    return statistics.median(times[1:])


class Own:
    """onnxruntime's own product of a [K, N] weight: `MatMul` in float16, or `MatMulNBits` with 4 bits in blocks of 128.

    As many weights as exceed the L2 cache are read in turn.
    """

    def __init__(self, operator: str, N: int, K: int) -> None:
        self.N, self.K = N, K
        dense = operator == "MatMul"
        self.copies = int(ROTATION_BYTES // (N * K * (2 if dense else 0.5))) + 2
        self.weights: dict[str, torch.Tensor] = {}
        nodes = []
        for copy in range(self.copies):
            if dense:
                mine = {f"w{copy}": _random(K, N)}
            else:
                codes = torch.randint(0, 256, (N, K // _BLOCK, _BLOCK // 2), dtype=torch.uint8, device="cuda")
                mine = {f"w{copy}": codes, f"s{copy}": _random(N, K // _BLOCK)}
            self.weights |= mine
            attributes = {} if dense else {"K": K, "N": N, "bits": 4, "block_size": _BLOCK}
            domain = "" if dense else "com.microsoft"
            nodes.append(helper.make_node(operator, ["x", *mine], [f"y{copy}"], domain=domain, **attributes))
        inputs = [_value("x", 10, ["M", K])]
        for name, weight in self.weights.items():
            inputs.append(_value(name, 2 if weight.dtype == torch.uint8 else 10, list(weight.shape)))
        outputs = [_value(f"y{copy}", 10, ["M", N]) for copy in range(self.copies)]
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        graph = helper.make_graph(nodes, "own", inputs, outputs)
        model = helper.make_model(graph, ir_version=10, opset_imports=opsets).SerializeToString()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        providers = [("CUDAExecutionProvider", {"enable_cuda_graph": "1"})]
        self.session = ort.InferenceSession(model, options, providers=providers)

    def seconds(self, M: int) -> float:
        """Time of one product."""
        given = {"x": _random(M, self.K)} | self.weights
        results = {f"y{copy}": _random(M, self.N) for copy in range(self.copies)}
        torch.cuda.synchronize()
        binding = self.session.io_binding()
        for bind, tensors in ((binding.bind_input, given), (binding.bind_output, results)):
            for name, tensor in tensors.items():
                kind = np.uint8 if tensor.dtype == torch.uint8 else np.float16
                bind(name, "cuda", 0, kind, list(tensor.shape), tensor.data_ptr())
        one_run = self.copies * max(1e-5, 2 * M * self.N * self.K / 4e14)
        return replay_seconds(self.session, binding, M, min(30, max(3, round(2e-3 / one_run)))) / self.copies


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.float16) * 0.02


def _value(name: str, kind: int, shape: list[int | str]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)
