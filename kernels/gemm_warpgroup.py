"""Which tile of gemm_warpgroup.cu a prefill linear takes on a device that has it."""

from dataclasses import dataclass

from kernels.context import DeviceLimits, Kernel

_RING_BYTES, _BARRIER_BYTES = 192 << 10, 128
SHARED_BYTES = _RING_BYTES + _BARRIER_BYTES
_MULTIPLYING_WARPS = 8


@dataclass(frozen=True)
class WarpgroupTile:
    """Tokens of a block, warps that fill its ring, and its time in units of the largest tile's."""

    tokens: int
    filling_warps: int
    time: float

    @property
    def threads(self) -> int:
        """Threads of a block: two warpgroups multiply."""
        return 32 * (_MULTIPLYING_WARPS + self.filling_warps)


TILES = (WarpgroupTile(256, 4, 1.0), WarpgroupTile(128, 8, 0.72), WarpgroupTile(64, 8, 0.65))


def has_warpgroups(limits: DeviceLimits) -> bool:
    """Whether the device has Hopper's warpgroup instructions and the memory a block takes."""
    return limits.architecture == "sm_90" and limits.shared_bytes >= SHARED_BYTES


def best_tile(limits: DeviceLimits, parts: tuple[int, ...], columns: int) -> WarpgroupTile:
    """The tile that takes the fewest rounds by time.

    `parts`: parts of the rows of x by each tile of TILES; `columns`: blocks of 128 columns. Results
    do not depend on the tile, so rows may be cut anywhere.
    """

    def time(choice: tuple[WarpgroupTile, int]) -> float:
        tile, n_parts = choice
        return tile.time * -(-n_parts * columns // limits.n_multiprocessors)

    return min(zip(TILES, parts, strict=True), key=time)[0]


def warpgroup_kernel(parameters: tuple[str, str, str], tile: WarpgroupTile) -> Kernel:
    """The kernel of a type, epilogue and grouping."""
    entry = "_".join(("gemm_warpgroup", *parameters, str(tile.tokens)))
    code = (
        f"ENTRY __launch_bounds__({tile.threads}, 1) "
        f"{entry}(const __grid_constant__ GemmArgs a) "
        f"{{ gemm_warpgroup<{', '.join(parameters)}, {tile.tokens}>(a); }}"
    )
    return Kernel("gemm_warpgroup.cu", entry, code)
