"""What a kernel is compiled for: the kind of product, and the numbers of its configuration."""

from dataclasses import dataclass

FORMAT_CODES = {"fp6_e3m2": 0, "fp6_e2m3": 1, "fp4_e2m1": 2, "int4": 3, "uint4": 4}
SCALE_CODES = {"float32": 0, "float16": 1, "bfloat16": 2}
_SCALE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
SHARED_BYTES_LIMIT = 232_448  # a block's most on compute capability 9.0 (CUDA programming guide, table of limits)


@dataclass(frozen=True)
class Operand:
    """What kind of weight and activation a kernel is compiled for.

    Attributes:
        fmt: Name of the weight's format.
        dtype: Of activations and results: `float16`, `bfloat16`, or `float32` (the kernel then takes three bfloat16 in
            place of each activation, see pieces.cu, and its results are float32).
        scale: Type of the scales.
        group: Rows of K that share a scale: 16, 32, 64 or a multiple of 128; 0 for one scale a column of W.
        zero: Whether the weight has zero points (integers only).
        gated: Whether strips of 16 columns are gate and up in turn, and the result is silu(gate) * up.
    """

    fmt: str
    dtype: str = "float16"
    scale: str = "float16"
    group: int = 0
    zero: bool = False
    gated: bool = False

    @property
    def gates_itself(self) -> bool:
        """Whether the product's kernel gates; three sums for each float32 have to be added up first."""
        return self.gated and self.dtype != "float32"

    @property
    def unit_bytes(self) -> int:
        """Bytes of 16 x 128 packed weights."""
        return 1536 if self.fmt.startswith("fp6") else 1024

    @property
    def macros(self) -> dict[str, int]:
        """What common.cuh is compiled with."""
        return {
            "FORMAT": FORMAT_CODES[self.fmt],
            "BF16": int(self.dtype != "float16"),
            "SCALE": SCALE_CODES[self.scale],
            "GROUP": self.group,
            "ZERO": int(self.zero),
            "WIDE": int(self.dtype == "float32"),
            "GATED": int(self.gates_itself),
        }

    @property
    def scale_bytes(self) -> int:
        """Bytes of one scale."""
        return _SCALE_BYTES[self.scale]

    def group_bytes(self, rows: int, units: int) -> int:
        """Shared memory for scales and zero points of `rows` columns of W for so many units along K."""
        if not self.group:
            return 0
        # A group longer than a unit is copied for each unit by itself.
        boxes, groups = (units, 1) if self.group > 128 else (1, units * 128 // self.group)
        sizes = [self.scale_bytes, *([1] if self.zero else [])]
        return boxes * sum(_up(groups * rows * size, 128) for size in sizes)


@dataclass(frozen=True)
class Stream:
    """custom_ops/cuda/matmul_stream.cu: few rows of x, bound by the bytes of W. Its head explains the numbers."""

    nt: int
    rw: int
    wr: int
    wk: int
    stages: int
    split: int
    bulk: int = 1
    x_rows: int = 0
    ahead: int = 0

    kernel = "matmul_stream"

    @property
    def rows(self) -> int:
        """Columns of W that a block computes."""
        return 16 * self.rw * self.wr

    @property
    def columns(self) -> int:
        """Rows of x that a block computes."""
        return 8 * self.nt

    @property
    def room(self) -> int:
        """Rows of x that a stage has room for; 0 in `x_rows` stands for `columns`."""
        return self.x_rows or self.columns

    @property
    def units_along_k(self) -> int:
        """Units of 128 k that a stage holds."""
        return self.wk

    @property
    def macros(self) -> dict[str, int]:
        """What the source is compiled with, besides the operand's."""
        numbers = (self.nt, self.rw, self.wr, self.wk, self.stages, self.split, self.bulk, self.room, self.ahead)
        return dict(zip(("NT", "RW", "WR", "WK", "STAGES", "SPLIT", "BULK", "X_ROWS", "AHEAD"), numbers, strict=True))

    def shared_bytes(self, operand: Operand) -> int:
        """Dynamic shared memory of a block."""
        weights = self.rw * self.wr * self.wk * operand.unit_bytes
        activations = (self.room * (2 * self.wk - 1) + self.columns) * 128
        stage = _up(activations + weights + operand.group_bytes(self.rows, self.wk), 1024)
        sums = self.wk * self.columns * (self.rows + 4) * 4
        return max(self.stages * stage, sums) + 32 * self.stages + 8 * self.rows

    @property
    def block(self) -> int:
        """Threads of a block; with many sums a whole warpgroup copies, and lends the others its registers."""
        warps = self.wr * self.wk
        return 384 if warps == 8 and self.rw * self.nt >= 14 else 32 * (warps + 1)


@dataclass(frozen=True)
class Tile:
    """custom_ops/cuda/matmul_tile.cu: many rows of x, bound by arithmetic. Its head explains the numbers."""

    columns: int
    mb: int
    groups: int
    stages: int
    split: int
    resident: int = 1
    steps: int = 1
    fold: int = 0

    kernel = "matmul_tile"

    @property
    def rows(self) -> int:
        """Columns of W that a block computes."""
        return 64 * self.mb * self.groups

    @property
    def units_along_k(self) -> int:
        """Units of 128 k that a stage holds."""
        return 1

    @property
    def macros(self) -> dict[str, int]:
        """What the source is compiled with, besides the operand's."""
        numbers = (self.columns, self.mb, self.groups, self.stages, self.split, self.resident, self.steps, self.fold)
        names = ("COLUMNS", "MB", "GROUPS", "STAGES", "SPLIT", "RESIDENT", "STEPS", "FOLD")
        return dict(zip(names, numbers, strict=True))

    def shared_bytes(self, operand: Operand) -> int:
        """Dynamic shared memory of a block."""
        weights = self.rows // 16 * operand.unit_bytes
        stage = _up(self.columns * 256 + weights + operand.group_bytes(self.rows, 1), 1024)
        sums = self.columns * (self.rows + 4) * 4
        return max(self.stages * stage, sums) + 16 * self.stages + 8 * self.rows

    @property
    def block(self) -> int:
        """Threads of a block."""
        return 128 * (self.groups + 1)

    def blocks(self, M: int, N: int) -> int:
        """Blocks that compute y[M, N]."""
        return -(-N // self.rows) * -(-M // self.columns) * self.split


Configuration = Stream | Tile


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
