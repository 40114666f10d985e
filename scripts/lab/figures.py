"""The figures of a study of samplers, as PNG files: errors against cost, levels, paths or pictures."""

from math import isnan, sqrt
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lab import measure, plots
from lab.measure import Problem, Run

Figures = dict[str, list[Path]]  # title of a section of the page -> its files


class Study(NamedTuple):
    """What was run, and what came out. The first schedule is the one whose paths or pictures are shown."""

    problem: Problem
    samplers: list[str]
    schedules: list[str]
    steps: list[int]
    runs: list[Run]
    exact: measure.Track
    states: dict[str, measure.Track]  # sampler -> its path of shown_steps on the first schedule

    @property
    def shown_steps(self) -> int:
        """The count of steps to show levels and paths of: few enough to see them."""
        return min(self.steps, key=lambda n: abs(n - 10))


def draw_figures(plt: Any, folder: Path, study: Study) -> Figures:
    """All figures, written to the folder. plt: matplotlib.pyplot."""
    problem = study.problem
    first = study.schedules[0]
    figures = {}
    if any(not isnan(run.error) for run in study.runs):
        figures["Error against cost"] = draw_costs(plt, folder, study, "error", "root mean square error")
    if problem.samples is not None:
        label = "sliced Wasserstein distance"
        figures["Distance of the distributions"] = draw_costs(plt, folder, study, "distance", label, problem.floor)
    figures[f"Where {study.shown_steps} steps go"] = [draw_levels(plt, folder, study)]
    if problem.samples is not None:
        figures[f"Paths of {study.shown_steps} steps, {first}"] = draw_paths(plt, folder, study, problem.samples)
    else:
        figures[f"Pictures, {first}"] = draw_pictures(plt, folder, study)
    return figures


def draw_costs(plt: Any, folder: Path, study: Study, value: str, label: str, floor: float | None = None) -> list[Path]:
    """A figure for each schedule: a value of the runs against evaluations of the network, a curve for each sampler."""
    files = []
    for schedule in study.schedules:
        lines = {}
        for name in study.samplers:
            runs = measure.select(study.runs, name, schedule)
            values = [getattr(run, value) for run in runs]
            if values[0] > 0:  # not NaN
                lines[name] = ([run.evaluations for run in runs], values)
        path = folder / f"{value}-{schedule.replace(':', '-')}.png"
        with plots.open_figure(plt, path, schedule) as axes:
            plots.draw_curves(axes, lines, study.samplers, "network evaluations", label, floor)
        files.append(path)
    return files


def draw_levels(plt: Any, folder: Path, study: Study) -> Path:
    """The noise levels of every schedule."""
    chosen = {}
    for name in study.schedules:
        chosen[name] = measure.choose_levels(study.problem, name, study.shown_steps)
    path = folder / "levels.png"
    with plots.open_figure(plt, path, "", width=6.4, height=0.9 + 0.36 * len(chosen)) as axes:
        plots.draw_levels(axes, chosen)
    return path


def draw_paths(plt: Any, folder: Path, study: Study, samples: Tensor) -> list[Path]:
    """Where some points go, beside their exact paths; few of them if the sampler draws noise."""
    files = []
    for k, name in enumerate(study.samplers):
        path = folder / f"paths-{name}.png"
        draws_noise = any(isnan(run.error) for run in study.runs if run.sampler == name)
        count = 4 if draws_noise else 14
        with plots.open_figure(plt, path, name, height=4.2) as axes:
            plots.draw_paths(axes, study.states[name], study.exact, samples, plots.choose_colour(k), count)
        files.append(path)
    return files


def draw_pictures(plt: Any, folder: Path, study: Study) -> list[Path]:
    """What each sampler draws with few and with many steps, and the end of the exact path."""
    files = []
    for name in study.samplers:
        ends = []
        labels = []
        for run in measure.select(study.runs, name, study.schedules[0]):
            ends.append(run.end)
            labels.append(f"{run.evaluations} evaluations")
        ends.append(study.exact[-1][1])
        labels.append("exact path")
        columns = [to_picture(study.problem, end) for end in ends]
        path = folder / f"pictures-{name}.png"
        with plots.open_figure(plt, path, name, height=3.4) as axes:
            plots.draw_pictures(axes, columns, labels)
        files.append(path)
    return files


def to_picture(problem: Problem, x: Tensor) -> Tensor:
    """x (b c h w) at the smallest level -> pictures (b 3 h w) in [-1, 1]."""
    if problem.picture is None:
        raise ValueError("this problem has no pictures")
    return problem.picture(x / sqrt(1 + problem.levels.sigma_min**2)).clamp(-1, 1)
