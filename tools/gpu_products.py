"""Products on a GPU for checks and timings: random packed weights, their float64 meaning, and CUDA-graph timing."""

import statistics
import time
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch

from onnxq.formats import get_format
from onnxq.formats.tiled import unpack_tiled
from onnxq.runtime.cuda import kernels
from onnxq.runtime.cuda.configuration import Configuration, Operand

TORCH_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
ROTATION_BYTES = 200e6  # weights rotate through more than this: three times the 60 MB of L2
WARM_SECONDS = 0.02
READ_BYTES_PER_SECOND = 4.3e12  # measured on an H200: the limit of a product that only streams its weights


class Product:
    """x [M, K] @ W [K, N] with random codes, so many copies of W that none is found in the L2 cache."""

    def __init__(self, operand: Operand, N: int, K: int, seed: int = 0, copies: int | None = None) -> None:
        torch.manual_seed(seed)
        self.operand, self.N, self.K = operand, N, K
        self.weight_bytes = N * K * operand.unit_bytes // 2048
        self.copies = copies or int(ROTATION_BYTES // self.weight_bytes) + 2
        self.packed = torch.randint(0, 256, (self.copies, self.weight_bytes), dtype=torch.uint8, device="cuda")
        groups = -(-K // operand.group) if operand.group else 1
        self.scale = (torch.rand(groups, N, device="cuda") * 0.01 + 0.005).to(TORCH_TYPES[operand.scale])
        self.zero = torch.randint(0, 16, (groups, N), dtype=torch.uint8, device="cuda")  # read only where asked for
        self.values: torch.Tensor | None = None
        self.dense_copies = int(ROTATION_BYTES // (2 * N * K)) + 2

    @property
    def columns(self) -> int:
        """Columns of the result: half of those of W where it is gated."""
        return self.N // 2 if self.operand.gates_itself else self.N

    def expected(self, x: torch.Tensor) -> torch.Tensor:
        """float64 [M, columns]: the result for the first copy's weights."""
        product = x.double() @ self.dense()
        if not self.operand.gates_itself:
            return product
        gate, up = product.unflatten(1, (-1, 2, 16)).unbind(2)
        return (torch.nn.functional.silu(gate) * up).flatten(1)

    @property
    def limit_seconds(self) -> float:
        """Time to read the weights once."""
        return self.weight_bytes / READ_BYTES_PER_SECOND

    @cached_property
    def halves(self) -> torch.Tensor:
        """Dense 16-bit weights for cuBLAS."""
        made = torch.randn(self.dense_copies, self.N, self.K, device="cuda") * 0.05
        return made.to(TORCH_TYPES[self.operand.dtype])

    def activations(self, M: int) -> torch.Tensor:
        """Normal x [M, K]."""
        return torch.randn(M, self.K, device="cuda").to(TORCH_TYPES[self.operand.dtype])

    def dense(self) -> torch.Tensor:
        """float64 [K, N]: the first copy's weights times their scales."""
        if self.values is None:
            fmt = get_format(self.operand.fmt)
            units = self.packed[0].cpu().numpy().reshape(self.N // 16, -(-self.K // 128), -1)
            codes = torch.from_numpy(unpack_tiled(units, fmt)).cuda()
            table = torch.from_numpy(np.asarray(fmt.values, np.float64)).cuda()
            values, rows = table[codes.int()], torch.arange(self.K, device="cuda") // (self.operand.group or self.K)
            if self.operand.zero:
                values -= table[self.zero.int()][rows]
            self.values = values * self.scale.double()[rows]
        return self.values

    def cublas(self, x: torch.Tensor) -> "Replay":
        """The product with a dense 16-bit weight through PyTorch."""
        y = torch.empty(x.shape[0], self.N, dtype=x.dtype, device="cuda")
        guess = max(2 * self.N * self.K / READ_BYTES_PER_SECOND, 2 * x.shape[0] * self.N * self.K / 7e14)
        count = calls_for(guess, self.dense_copies)
        return Replay(lambda copy: torch.mm(x, self.halves[copy].t(), out=y), count, self.dense_copies)

    def run(
        self,
        configuration: Configuration,
        x: torch.Tensor,
        y: torch.Tensor,
        copy: int = 0,
        bias: int = 0,
        *,
        early: bool = True,
    ) -> None:
        """Put one product on torch's current stream."""
        tensors = (x, self.packed[copy], self.scale, y)
        pointers = kernels.Pointers(*(each.data_ptr() for each in tensors), zero=self.zero.data_ptr(), bias=bias)
        stream = torch.cuda.current_stream().cuda_stream
        kernels.matmul(self.operand, configuration, pointers, (x.shape[0], self.N, self.K), stream, early=early)

    def error(self, configuration: Configuration, x: torch.Tensor, reference: torch.Tensor) -> float:
        """||y - reference|| / ||reference||, from a poisoned y; infinite where a second run differs in one bit."""
        results = []
        for _ in range(2):
            y = torch.full((x.shape[0], self.columns), float("nan"), dtype=x.dtype, device="cuda")
            self.run(configuration, x, y)
            results.append(y)
        if not torch.equal(*results):
            return float("inf")
        return float((results[0].double() - reference).norm() / reference.norm())


class Replay:
    """A CUDA graph of `count` calls; call(copy) rotates over the copies of the weights."""

    def __init__(self, call: Callable[[int], object], count: int, copies: int) -> None:
        self.call, self.count = call, count  # what a graph was captured from must outlive it
        call(0)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for i in range(count):
                call(i % copies)

    def seconds(self) -> float:
        """Time of one call in one replay."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / self.count


def median_seconds(replay: Replay, replays: int = 7, warm_seconds: float = WARM_SECONDS) -> float:
    """Median time of one call in some replays, behind others for so long."""
    began = time.monotonic()
    while time.monotonic() - began < warm_seconds:  # an idle GPU has lowered its clocks
        replay.seconds()
    return statistics.median(replay.seconds() for _ in range(replays))


def calls_for(seconds: float, copies: int) -> int:
    """So many calls that a replay takes about a millisecond and every copy of the weights is used equally often."""
    return copies * max(1, round(1e-3 / seconds / copies))
