"""How attention is cut into programs, for each architecture: a table, so that nothing is tuned when a program starts.

Chosen from compiled code, of the published heads in 16 bits: no spilled registers, shared memory within the limits
(sm_80 163 KB, sm_86 99, sm_90 227, gfx942 64), two blocks of warps on a processor where registers allow it. They have
not been tuned on a GPU: `scripts/bench/time_kernels.py --sweep` does that.
"""

from dataclasses import dataclass

import triton
from torch import Tensor

from . import hardware


@dataclass(frozen=True)
class Tiles:
    """A program computes queries x keys scores at a time, with so many warps and loads in flight."""

    queries: int
    keys: int
    warps: int
    stages: int
    columns: int = 0  # of the result that one program sums; 0: all of the main ones

    def blocks(self) -> dict:
        return dict(BLOCK_Q=self.queries, BLOCK_K=self.keys, num_warps=self.warps, num_stages=self.stages)


# architecture -> kernel -> widest head that the tiles serve, in 16 bits
TILES = {
    "sm_90": {
        "forward": {96: Tiles(128, 64, 8, 3), 160: Tiles(128, 32, 8, 3), 512: Tiles(128, 32, 8, 2, columns=256)},
        "queries": {96: Tiles(128, 64, 8, 2), 160: Tiles(128, 32, 8, 2), 512: Tiles(32, 16, 8, 2)},
        "keys": {
            64: Tiles(64, 128, 8, 2),
            96: Tiles(32, 128, 8, 2),
            160: Tiles(16, 128, 8, 2),
            512: Tiles(16, 32, 8, 2, columns=256),
        },
        "short": {96: Tiles(128, 128, 8, 2), 160: Tiles(64, 128, 8, 2)},
    },
    "sm_80": {
        "forward": {96: Tiles(128, 64, 8, 3), 160: Tiles(128, 32, 8, 2), 512: Tiles(64, 32, 8, 2, columns=256)},
        "queries": {
            64: Tiles(128, 64, 8, 2),
            96: Tiles(64, 32, 4, 2),
            160: Tiles(64, 16, 4, 2),
            512: Tiles(32, 16, 8, 2),
        },
        "keys": {96: Tiles(32, 128, 8, 2), 160: Tiles(16, 128, 8, 2), 512: Tiles(16, 32, 8, 2, columns=256)},
        "short": {96: Tiles(128, 128, 8, 2), 160: Tiles(64, 128, 8, 2)},
    },
    "gfx942": {
        "forward": {
            64: Tiles(128, 32, 4, 2),
            96: Tiles(128, 64, 4, 2),
            160: Tiles(64, 32, 4, 2),
            512: Tiles(32, 16, 8, 2, columns=256),
        },
        "queries": {
            64: Tiles(64, 32, 4, 2),
            96: Tiles(64, 64, 4, 2),
            160: Tiles(64, 32, 4, 2),
            512: Tiles(16, 16, 8, 2, columns=256),
        },
        "keys": {64: Tiles(16, 64, 4, 2), 160: Tiles(32, 64, 4, 2), 512: Tiles(16, 16, 4, 2, columns=64)},
        "short": {},
    },
}
TILES["sm_86"] = {kernel: dict(sizes) for kernel, sizes in TILES["sm_80"].items()}
TILES["sm_86"]["forward"][512] = Tiles(64, 16, 8, 2, columns=256)
TILES["sm_86"]["keys"][512] = Tiles(16, 16, 8, 2)
for name in ("sm_89", "sm_120", "sm_121"):
    TILES[name] = TILES["sm_86"]

# float32 does not run on tensor cores: kernel -> widest head
FLOAT32_TILES = {
    "forward": {96: Tiles(32, 32, 4, 2), 160: Tiles(32, 32, 8, 2), 512: Tiles(16, 16, 4, 2, columns=256)},
    "queries": {96: Tiles(32, 32, 4, 2), 160: Tiles(32, 32, 8, 2), 512: Tiles(16, 16, 8, 2, columns=256)},
    "keys": {96: Tiles(32, 32, 4, 2), 160: Tiles(32, 32, 8, 2), 512: Tiles(16, 16, 8, 2, columns=128)},
    "short": {},
}
SMALL = ("sm_86", "sm_89", "sm_120", "sm_121", "gfx942")  # less shared memory than float32 gradients of head 512 take


def sizes_of(kernel: str, like: Tensor) -> dict[int, Tiles]:
    return FLOAT32_TILES[kernel] if like.dtype.itemsize == 4 else hardware.for_architecture(TILES, like.device)[kernel]


def tiles(kernel: str, width: int, like: Tensor) -> Tiles:
    """Raises ValueError for float32 gradients of 512-wide heads on GPUs whose shared memory is too small for them."""
    architecture, wide = hardware.gpu(like.device)[0], width > 160 and like.dtype.itemsize == 4
    hardware.require(
        kernel == "forward" or not wide or architecture not in SMALL,
        "attention",
        f"float32 gradients of a {width}-wide head do not fit into the shared memory of {architecture}",
    )
    return next(tile for widest, tile in sizes_of(kernel, like).items() if width <= widest)


def short_tiles(width: int, m: int, like: Tensor) -> Tiles | None:
    """Tiles that hold all m keys at once, if they can be."""
    return next((tile for widest, tile in sizes_of("short", like).items() if width <= widest and m <= tile.keys), None)


def columns_in_blocks(width: int) -> tuple[int, int]:
    """Widths of the two blocks that hold a head: powers of two of at least 16, the second 0 if one is enough."""
    main = max(16, 2 ** (width.bit_length() - 1))
    tail = max(16, triton.next_power_of_2(width - main)) if width > main else 0
    return (main + tail, 0) if main == tail else (main, tail)
