"""How attention is cut into programs, for each architecture: a table, so that nothing is tuned when a program starts.

Chosen from compiled code: no spilled registers, shared memory within the limits, two blocks of warps on a processor
where registers allow it. They have not been tuned on a GPU: `scripts/bench_kernels.py --sweep` does that.
"""

from dataclasses import dataclass

import triton
from torch import Tensor

from .hardware import for_architecture


@dataclass(frozen=True)
class Tiles:
    """A program computes queries x keys scores at a time, with so many warps and loads in flight."""

    queries: int
    keys: int
    warps: int
    stages: int
    columns: int = 0   # of the result that one program sums; 0: all of the main ones

    def blocks(self) -> dict:
        return dict(BLOCK_Q=self.queries, BLOCK_K=self.keys, num_warps=self.warps, num_stages=self.stages)


# architecture -> kernel -> bytes per element -> widest head that the tiles serve
TILES = {
    "sm_90": {
        "forward": {2: {96: Tiles(128, 64, 8, 3), 160: Tiles(128, 32, 8, 3),
                        512: Tiles(128, 32, 8, 2, columns=256)},
                    4: {96: Tiles(32, 32, 4, 2), 160: Tiles(32, 32, 8, 2), 512: Tiles(16, 16, 4, 2, columns=256)}},
        "queries": {2: {96: Tiles(128, 64, 8, 2), 160: Tiles(128, 32, 8, 2), 512: Tiles(32, 16, 8, 2)},
                    4: {96: Tiles(32, 32, 4, 2), 160: Tiles(32, 32, 8, 2), 512: Tiles(16, 16, 8, 2, columns=256)}},
        "keys": {2: {64: Tiles(64, 128, 8, 2), 96: Tiles(32, 128, 8, 2), 160: Tiles(16, 128, 8, 2),
                     512: Tiles(16, 32, 8, 2, columns=256)},
                 4: {96: Tiles(32, 32, 4, 2), 160: Tiles(32, 32, 8, 2), 512: Tiles(16, 16, 8, 2, columns=128)}},
        "short": {2: {96: Tiles(128, 128, 8, 2), 160: Tiles(64, 128, 8, 2)}, 4: {}},
    },
    "sm_80": {
        "forward": {2: {96: Tiles(128, 64, 8, 3), 160: Tiles(128, 32, 8, 2),
                        512: Tiles(64, 32, 8, 2, columns=256)}},
        "queries": {2: {64: Tiles(128, 64, 8, 2), 96: Tiles(64, 32, 4, 2), 160: Tiles(64, 16, 4, 2),
                        512: Tiles(32, 16, 8, 2)}},
        "keys": {2: {96: Tiles(32, 128, 8, 2), 160: Tiles(16, 128, 8, 2), 512: Tiles(16, 32, 8, 2, columns=256)}},
        "short": {2: {96: Tiles(128, 128, 8, 2), 160: Tiles(64, 128, 8, 2)}},
    },
    "gfx942": {
        "forward": {2: {96: Tiles(128, 64, 4, 2), 160: Tiles(64, 32, 4, 2), 512: Tiles(32, 16, 8, 2, columns=256)}},
        "queries": {2: {96: Tiles(64, 64, 4, 2), 160: Tiles(64, 32, 4, 2), 512: Tiles(16, 16, 8, 2, columns=256)}},
        "keys": {2: {96: Tiles(32, 64, 4, 2), 160: Tiles(32, 64, 4, 2), 512: Tiles(16, 16, 8, 2, columns=64)}},
        "short": {2: {}},
    },
}
for architecture in ("sm_80", "gfx942"):
    for kernel, sizes in TILES[architecture].items():
        sizes[4] = TILES["sm_90"][kernel][4]      # float32 does not run on tensor cores


def tiles(kernel: str, width: int, like: Tensor) -> Tiles | None:
    """None where a kernel does not serve a width: "short" alone leaves some out."""
    sizes = for_architecture(TILES, like.device)[kernel][like.dtype.itemsize]
    return next((tile for widest, tile in sizes.items() if width <= widest), None)


def short_tiles(width: int, m: int, like: Tensor) -> Tiles | None:
    """Tiles that hold all m keys at once, if they can be."""
    tile = tiles("short", width, like)
    return tile if tile and m <= tile.keys else None


def columns_in_blocks(width: int) -> tuple[int, int]:
    """Widths of the two blocks that hold a head: powers of two of at least 16, the second 0 if one is enough."""
    main = max(16, 2 ** (width.bit_length() - 1))
    tail = max(16, triton.next_power_of_2(width - main)) if width > main else 0
    return (main + tail, 0) if main == tail else (main, tail)
