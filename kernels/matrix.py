"""Packed weight matrices: the tile layout of tile.cuh, and the launcher that packs into it."""

import ctypes
from dataclasses import dataclass

from kernels.arrays import DeviceArray, require, require_positive
from kernels.context import Kernel, Launcher
from kernels.driver import LaunchShape
from kernels.errors import KernelArgumentError
from kernels.structure import INT, POINTER, fields


@dataclass(frozen=True)
class TileFormat:
    """Bytes of a block of 32 weights by part, and of the source block of `block_size` weights."""

    quant_bytes: int
    high_bytes: int
    scale_bytes: int
    super_bytes_256: int
    block_size: int
    block_bytes: int

    @property
    def is_float(self) -> bool:
        """F32, F16 and BF16 are kept as they are."""
        return self.block_size == 1


TILE_FORMATS = {
    "F32": TileFormat(128, 0, 0, 0, 1, 4),
    "F16": TileFormat(64, 0, 0, 0, 1, 2),
    "BF16": TileFormat(64, 0, 0, 0, 1, 2),
    "Q4_0": TileFormat(16, 0, 2, 0, 32, 18),
    "Q4_1": TileFormat(16, 0, 4, 0, 32, 20),
    "Q5_0": TileFormat(16, 4, 2, 0, 32, 22),
    "Q5_1": TileFormat(16, 4, 4, 0, 32, 24),
    "Q8_0": TileFormat(32, 0, 2, 0, 32, 34),
    "Q4_K": TileFormat(16, 0, 2, 0, 256, 144),
    "Q5_K": TileFormat(16, 4, 2, 0, 256, 176),
    "Q6_K": TileFormat(16, 8, 2, 2, 256, 210),
    "MXFP4": TileFormat(16, 0, 1, 0, 32, 17),
}


def tile_format(type_name: str) -> TileFormat:
    """The format of a weight type; raises KernelArgumentError naming the supported ones."""
    if type_name not in TILE_FORMATS:
        raise KernelArgumentError(f"type {type_name} is none of {', '.join(TILE_FORMATS)}")
    return TILE_FORMATS[type_name]


def padded_width(k: int) -> int:
    """Row width in the packed layout: up to a whole block of 32."""
    return -(-k // 32) * 32


def tile_bytes(type_name: str, tile_rows: int, k: int) -> int:
    """Bytes of a tile of `tile_rows` rows of `k` weights."""
    form, width = tile_format(type_name), padded_width(k)
    row = width // 32 * (form.quant_bytes + form.high_bytes + form.scale_bytes)
    row += width // 256 * form.super_bytes_256
    return -(-tile_rows * row // 16) * 16


def matrix_bytes(type_name: str, rows: int, k: int, tile_rows: int) -> int:
    """Bytes of a packed matrix, the last tile whole."""
    return -(-rows // tile_rows) * tile_bytes(type_name, tile_rows, k)


@dataclass(frozen=True)
class PackedMatrix:
    """`n_experts` matrices [rows, k] in tiles of `tile_rows` rows, one after the other."""

    type: str
    rows: int
    k: int
    tile_rows: int
    tiles: DeviceArray
    n_experts: int = 1

    def __post_init__(self) -> None:
        """Refuse shapes that the kernels cannot read and memory that is too small."""
        require_positive(rows=self.rows, k=self.k, n_experts=self.n_experts)
        form = tile_format(self.type)
        if self.tile_rows not in (1, 2, 4):
            raise KernelArgumentError(f"tile_rows: wanted 1, 2 or 4, got {self.tile_rows}")
        unit = max(form.block_size, 4)
        if self.k % unit:
            raise KernelArgumentError(f"{self.type} rows hold multiples of {unit}, got {self.k}")
        if self.tiles.size_bytes < self.expert_bytes * self.n_experts:
            raise KernelArgumentError(
                f"tiles: wanted {self.expert_bytes * self.n_experts} bytes, "
                f"got {self.tiles.size_bytes}"
            )

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert's matrix, or of the only one."""
        return matrix_bytes(self.type, self.rows, self.k, self.tile_rows)

    @property
    def n_tiles(self) -> int:
        """Tiles of one expert's matrix."""
        return -(-self.rows // self.tile_rows)

    @property
    def is_float(self) -> bool:
        """Whether the weights are F32, F16 or BF16."""
        return tile_format(self.type).is_float

    @property
    def padded_k(self) -> int:
        """Row width in the packed layout."""
        return padded_width(self.k)


class PackArguments(ctypes.Structure):
    """pack.cu: PackArgs."""

    _fields_ = [
        *fields(POINTER, "source tiles"),
        *fields(INT, "rows first_row k row_bytes tile_rows row_stride row_offset padded_k"),
    ]


@dataclass(frozen=True)
class RowPlacement:
    """Where source rows go: packed row = (first_row + r) · stride + offset."""

    first_row: int = 0
    stride: int = 1
    offset: int = 0


def pack_kernel(type_name: str) -> Kernel:
    """The kernel that packs rows of a type."""
    return Kernel("pack.cu", f"pack_{type_name}")


def pack_rows(
    launcher: Launcher,
    source: DeviceArray,
    matrix: PackedMatrix,
    placement: RowPlacement,
    expert: int = 0,
) -> None:
    """Repack source rows of GGUF blocks u8[rows, row_bytes] into tiles of `matrix`.

    Raises KernelArgumentError where rows or bytes do not fit the matrix.
    """
    form = tile_format(matrix.type)
    row_bytes = matrix.k // form.block_size * form.block_bytes
    pointer = require("source", source, "u8", (None, row_bytes))
    rows = source.shape[0]
    last = (placement.first_row + rows - 1) * placement.stride + placement.offset
    if not rows or last >= matrix.rows or not 0 <= expert < matrix.n_experts:
        raise KernelArgumentError(
            f"source: rows up to {last} of expert {expert} do not fit "
            f"{matrix.n_experts} x {matrix.rows} rows"
        )
    arguments = PackArguments(
        pointer, matrix.tiles.pointer + expert * matrix.expert_bytes, rows, placement.first_row,
        matrix.k, row_bytes, matrix.tile_rows, placement.stride, placement.offset, matrix.padded_k,
    )  # fmt: skip
    blocks = rows * (matrix.padded_k // 32)
    shape = LaunchShape((-(-blocks // 128), 1), 128)
    launcher.launch(pack_kernel(matrix.type), shape, arguments)
