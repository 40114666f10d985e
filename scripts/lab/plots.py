"""Plots of schedules, paths and errors onto matplotlib axes; the caller imports matplotlib."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b5b5b", "#8c510a")
GRID: dict[str, Any] = dict(color="#e5e5e5", linewidth=0.8)


@contextmanager
def open_figure(plt: Any, path: Path, title: str, width: float = 4.6, height: float = 3.7) -> Generator[Any]:
    """Axes to draw on inside the block; the PNG is written at its end."""
    plot, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    yield axes
    plot.savefig(path, dpi=180)
    plt.close(plot)


def choose_colour(k: int) -> str:
    """Of the k-th sampler or schedule."""
    return COLOURS[k % len(COLOURS)]


Line = tuple[Sequence[float], Sequence[float]]  # x, y
Limits = tuple[tuple[float, float], tuple[float, float]]  # of x and of y


def find_limits(lines: Sequence[Line], floor: float | None = None) -> Limits:
    """Limits of logarithmic axes that hold all lines, and the floor, with a margin."""
    found = []
    for k in range(2):
        values = [value for line in lines for value in line[k] if value > 0]
        if k == 1 and floor:
            values.append(floor)
        margin = (max(values) / min(values)) ** 0.06 * 1.05
        found.append((min(values) / margin, max(values) * margin))
    return found[0], found[1]


def draw_curves(
    axes: Any,
    lines: Mapping[str, Line],
    names: Sequence[str],
    labels: tuple[str, str],
    limits: Limits,
    floor: float | None = None,
):
    """Named lines, both axes logarithmic; `names` fixes the colours. labels: of x and y. floor: what y cannot be
    expected to pass."""
    for name, (x, y) in lines.items():
        k = list(names).index(name)
        style = "o-" if k < len(COLOURS) else "s--"
        axes.plot(x, y, style, color=choose_colour(k), markersize=4, linewidth=1.6, label=name)
    if floor:
        axes.axhline(floor, color="#888", linestyle=":", linewidth=1.2, label="two exact draws")
    axes.set(xscale="log", yscale="log", xlabel=labels[0], ylabel=labels[1], xlim=limits[0], ylim=limits[1])
    costs = set()
    for x, _ in lines.values():
        costs.update(x)
    ticks = sorted(costs)
    apart = [b for a, b in zip([0, *ticks], ticks) if b > 1.3 * a]  # numbers that do not overlap
    axes.set_xticks(apart, [str(n) for n in apart])
    low, high = limits[1]
    if high < 100 * low:  # too narrow for powers of ten
        values = [m * 10.0**e for e, m in product(range(-12, 12), (1, 2, 3, 5))]
        shown = [value for value in values if low < value < high]
        axes.set_yticks(shown, [f"{value:g}" for value in shown])
    axes.minorticks_off()
    axes.grid(**GRID)
    axes.legend(fontsize=7.5, frameon=False, ncols=1 + len(lines) // 7)


def draw_levels(axes: Any, schedules: Mapping[str, Sequence[float]]):
    """A row of marks per schedule, at its noise levels above 0."""
    for k, sigmas in enumerate(schedules.values()):
        sigmas = [sigma for sigma in sigmas if sigma > 0]
        axes.hlines(k, sigmas[-1], sigmas[0], color=choose_colour(k), linewidth=1, alpha=0.4)
        axes.plot(sigmas, [k] * len(sigmas), "|", color=choose_colour(k), markersize=13, markeredgewidth=1.8)
    axes.set_yticks(range(len(schedules)), schedules)
    axes.set(xscale="log", xlabel="noise level sigma", ylim=(len(schedules) - 0.5, -0.5))
    axes.invert_xaxis()
    axes.spines["left"].set_visible(False)
    axes.tick_params(left=False)
    axes.grid(axis="x", **GRID)


def draw_paths(
    axes: Any,
    states: Sequence[tuple[float, Tensor]],
    exact: Sequence[tuple[float, Tensor]],
    samples: Tensor,
    color: str,
    count: int = 14,
):
    """Where `count` points in the plane go, drawn at unit variance so that the noisy beginning fits in.

    states, exact: (sigma, x (1 2 1 n)) along a sampler's path and along the true one. samples: clean points (n 2).
    """

    def scale(path: Sequence[tuple[float, Tensor]]) -> Tensor:
        return torch.stack([x[0, :, 0, :count] / sqrt(1 + sigma**2) for sigma, x in path])  # (levels 2 count)

    axes.scatter(*samples[:1500].T, s=3, color="#d9d9d9", linewidths=0)
    truth = scale(exact)
    found = scale(states)
    for k in range(truth.shape[2]):
        axes.plot(*truth[:, :, k].T, color="#777", linewidth=0.9)
        axes.plot(*found[:, :, k].T, ".-", color=color, linewidth=1, markersize=3.5)
    axes.plot(*truth[-1], "x", color="black", markersize=5)
    axes.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color="#dddddd")


def draw_pictures(axes: Any, columns: Sequence[Tensor], labels: Sequence[str]):
    """Columns of pictures (b 3 h w) in [-1, 1], with a label each."""
    stacked = [torch.cat(list(column), dim=1) for column in columns]  # (3 b*h w) each
    whole = torch.cat(stacked, dim=2)
    axes.imshow(((whole + 1) / 2).clamp(0, 1).permute(1, 2, 0).float().cpu())
    width = whole.shape[2] / len(columns)
    axes.set_xticks([(k + 0.5) * width for k in range(len(columns))], labels, fontsize=8)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(bottom=False)
