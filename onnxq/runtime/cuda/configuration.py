"""A kernel with its compile-time numbers, and the launch that belongs to it: data that C code can use as well."""

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
        dtype: `float16` or `bfloat16`: activations and results.
        scale: Type of the scales.
        group: Rows of K that share a scale: 16, 32, 64 or a multiple of 128; 0 for one scale a column of W.
    """

    fmt: str
    dtype: str = "float16"
    scale: str = "float16"
    group: int = 0

    @property
    def unit_bytes(self) -> int:
        """Bytes of 16 x 128 packed weights."""
        return 1536 if self.fmt.startswith("fp6") else 1024

    @property
    def macros(self) -> dict[str, int]:
        """What common.cuh is compiled with."""
        return {
            "FORMAT": FORMAT_CODES[self.fmt],
            "BF16": int(self.dtype == "bfloat16"),
            "SCALE": SCALE_CODES[self.scale],
            "GROUP": self.group,
        }

    def scale_bytes(self, rows: int, units: int) -> int:
        """Shared memory for the scales of `rows` columns of W for so many units along K."""
        if not self.group:
            return 0
        if self.group > 128:
            return units * _up(rows * _SCALE_BYTES[self.scale], 128)
        return _up(units * 128 // self.group * rows * _SCALE_BYTES[self.scale], 128)


@dataclass(frozen=True)
class Launch:
    """Numbers for cuLaunchKernel."""

    grid: tuple[int, int, int]
    block: int
    shared_bytes: int


@dataclass(frozen=True)
class Map:
    """Arguments of cuTensorMapEncodeTiled, innermost dimension first; fill with zeros, element strides of 1.

    Attributes:
        element: CUtensorMapDataType by its size: unsigned of 2, 4 or 8 bytes (floats are moved as bits).
        dims: Size of each dimension.
        strides: Bytes between neighbours, of every dimension but the innermost.
        box: What one copy takes.
        swizzle: Whether with CU_TENSOR_MAP_SWIZZLE_128B.
    """

    element: int
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: bool = False


def tensor_maps(
    operand: Operand, configuration: "Configuration", M: int, N: int, K: int
) -> tuple[Map, Map, Map | None]:
    """The maps of x, of the packed weight and of the scales (None where one scale serves a whole column)."""
    rows, along_k, unit = configuration.rows, configuration.units_along_k, operand.unit_bytes
    units = K // 128
    # Dimensions [64, M, K / 64] put the rows of a slab of 64 k, one line of the swizzle each, side by side.
    lines = configuration.columns if isinstance(configuration, Tile) else min(M, configuration.columns)
    x = Map(2, (64, M, K // 64), (2 * K, 128), (64, lines, 2 * along_k), swizzle=True)
    w = Map(8, (unit // 8, units, N // 16), (unit, unit * units), (unit // 8, along_k, rows // 16))
    if not operand.group:
        return x, w, None
    size = _SCALE_BYTES[operand.scale]
    groups = along_k * 128 // operand.group if operand.group <= 128 else 1
    scales = Map(size, (N, -(-K // operand.group)), (size * N,), (rows, groups))
    return x, w, scales


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
        numbers = (self.nt, self.rw, self.wr, self.wk, self.stages, self.split, self.bulk, self.room)
        return dict(zip(("NT", "RW", "WR", "WK", "STAGES", "SPLIT", "BULK", "X_ROWS"), numbers, strict=True))

    def shared_bytes(self, operand: Operand) -> int:
        """Dynamic shared memory of a block."""
        weights = self.rw * self.wr * self.wk * operand.unit_bytes
        activations = self.room * self.wk * 256
        stage = _up(activations + weights + operand.scale_bytes(self.rows, self.wk), 1024)
        sums = self.wk * self.columns * (self.rows + 4) * 4
        return max(self.stages * stage, sums) + 16 * self.stages + 8 * self.rows

    def launch(self, operand: Operand, M: int, N: int) -> Launch:
        """How to launch it for y[M, N]."""
        grid = (-(-N // self.rows) * self.split, -(-M // self.columns), 1)
        return Launch(grid, 32 * (self.wr * self.wk + 1), self.shared_bytes(operand))


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
        stage = _up(self.columns * 256 + weights + operand.scale_bytes(self.rows, 1), 1024)
        sums = self.columns * (self.rows + 4) * 4
        return max(self.stages * stage, sums) + 16 * self.stages + 8 * self.rows

    def launch(self, operand: Operand, M: int, N: int) -> Launch:
        """How to launch it for y[M, N]."""
        tiles = -(-N // self.rows) * -(-M // self.columns)
        return Launch((tiles * self.split, 1, 1), 128 * (self.groups + 1), self.shared_bytes(operand))


Configuration = Stream | Tile


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
