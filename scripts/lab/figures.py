"""The figures of a study of samplers, as PNG files: errors against cost, levels, paths or pictures."""

from math import isnan, sqrt
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lab import measure, plots
from lab.measure import Problem, Run


class Figure(NamedTuple):
    """A PNG file, and what it shows in words for those who do not see it."""

    path: Path
    alt: str


class Section(NamedTuple):
    """A part of the page. caption: how to read its figures, and what to see."""

    title: str
    caption: str
    figures: list[Figure]


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


def draw_figures(plt: Any, folder: Path, study: Study) -> list[Section]:
    """All figures, written to the folder. plt: matplotlib.pyplot."""
    problem = study.problem
    sections = []
    if any(not isnan(run.error) for run in study.runs):
        sections.append(draw_errors(plt, folder, study))
    if problem.samples is not None:
        sections.append(draw_distances(plt, folder, study, problem.floor))
    sections.append(draw_levels(plt, folder, study))
    if problem.samples is not None:
        sections.append(draw_paths(plt, folder, study, problem.samples))
    else:
        sections.append(draw_pictures(plt, folder, study))
    return sections


def draw_errors(plt: Any, folder: Path, study: Study) -> Section:
    """How far from the end of the exact path the runs end."""
    known = [run for run in study.runs if not isnan(run.error)]
    best = min(known, key=lambda run: run.error)
    caption = (
        "A line is a sampler and a dot one run of it: how far it ends from the end of the exact path, against what it "
        "costs. Lower is better; the steeper a line falls, the higher the order. All plots have the same axes. "
        "Samplers that add noise follow no exact path and are left out. "
        f"The smallest error is that of {best.sampler} on {best.schedule}: {best.error:.2g} after {best.evaluations} "
        "evaluations."
    )
    figures = draw_costs(plt, folder, study, "error", "root mean square error")
    return Section("Error against cost", caption, figures)


def draw_distances(plt: Any, folder: Path, study: Study, floor: float | None) -> Section:
    """How far the samples as a whole are from the true distribution."""
    best = min(study.runs, key=lambda run: run.distance)
    caption = (
        "The same for the samples as a whole: the distance between their distribution and the true one, which samplers "
        "with noise can be measured by too. The dotted line is the distance of two exact draws; nothing but luck comes "
        f"below it. The nearest is {best.sampler} on {best.schedule} after {best.evaluations} evaluations."
    )
    figures = draw_costs(plt, folder, study, "distance", "sliced Wasserstein distance", floor)
    return Section("Distance of the distributions", caption, figures)


def draw_costs(
    plt: Any, folder: Path, study: Study, value: str, label: str, floor: float | None = None
) -> list[Figure]:
    """A figure for each schedule: a value of the runs against evaluations of the network, a curve for each sampler."""
    curves = {}
    for schedule in study.schedules:
        curves[schedule] = {}
        for name in study.samplers:
            runs = measure.select(study.runs, name, schedule)
            values = [getattr(run, value) for run in runs]
            if values[0] > 0:  # not NaN
                curves[schedule][name] = ([run.evaluations for run in runs], values)
    limits = plots.find_limits([line for lines in curves.values() for line in lines.values()], floor)
    figures = []
    for schedule, lines in curves.items():
        path = folder / f"{value}-{schedule.replace(':', '-')}.png"
        with plots.open_figure(plt, path, schedule) as axes:
            plots.draw_curves(axes, lines, study.samplers, ("network evaluations", label), limits, floor)
        ends = [f"{name} from {values[0]:.2g} to {values[-1]:.2g}" for name, (_, values) in lines.items()]
        figures.append(Figure(path, f"{label} on {schedule}, fewest to most steps: {', '.join(ends)}"))
    return figures


def draw_levels(plt: Any, folder: Path, study: Study) -> Section:
    """The noise levels of every schedule."""
    chosen = {}
    spoken = []
    for name in study.schedules:
        sigmas = measure.choose_levels(study.problem, name, study.shown_steps)
        chosen[name] = sigmas
        small = sum(0 < sigma < 1 for sigma in sigmas)
        spoken.append(f"{name} has {small} of its levels below 1")
    path = folder / "levels.png"
    with plots.open_figure(plt, path, "", width=6.4, height=0.9 + 0.36 * len(chosen)) as axes:
        plots.draw_levels(axes, chosen)
    caption = (
        "A row is a schedule and a mark a noise level that it visits, from pure noise on the left to the clean end on "
        f"the right. Levels above 1 decide what is where, those below 1 the details: {', '.join(spoken)}."
    )
    figure = Figure(path, f"Noise levels of {study.shown_steps} steps: {', '.join(spoken)}")
    return Section(f"Where {study.shown_steps} steps go", caption, [figure])


def draw_paths(plt: Any, folder: Path, study: Study, samples: Tensor) -> Section:
    """Where some points go, beside their exact paths; few of them if the sampler draws noise."""
    figures = []
    first = study.schedules[0]
    for k, name in enumerate(study.samplers):
        path = folder / f"paths-{name}.png"
        draws_noise = any(isnan(run.error) for run in study.runs if run.sampler == name)
        count = 4 if draws_noise else 14
        with plots.open_figure(plt, path, name, height=4.6) as axes:
            plots.draw_paths(axes, study.states[name], study.exact, samples, plots.choose_colour(k), count)
        way = "wander, since noise is added" if draws_noise else "follow the exact ones"
        figures.append(Figure(path, f"Paths of {count} points by {name} on {first}: they {way}"))
    caption = (
        "A coloured line is the way of one point from noise to the distribution, a dot on it each step; the grey line "
        "is the exact path from the same noise, and the black cross its end. Grey dots are samples of the true "
        "distribution. The nearer a coloured line ends to its cross, the better; samplers that add noise go ways of "
        "their own, which may leave the plot. All plots have the same axes, at unit variance, so that the noisy "
        "beginning fits in."
    )
    return Section(f"Paths of {study.shown_steps} steps, {first}", caption, figures)


def draw_pictures(plt: Any, folder: Path, study: Study) -> Section:
    """What each sampler draws with few and with many steps, and the end of the exact path."""
    figures = []
    first = study.schedules[0]
    for name in study.samplers:
        ends = []
        labels = []
        for run in measure.select(study.runs, name, first):
            ends.append(run.end)
            labels.append(f"{run.evaluations} evaluations")
        ends.append(study.exact[-1][1])
        labels.append("exact path")
        columns = [to_picture(study.problem, end) for end in ends]
        path = folder / f"pictures-{name}.png"
        with plots.open_figure(plt, path, name, height=3.4) as axes:
            plots.draw_pictures(axes, columns, labels)
        figures.append(Figure(path, f"Pictures by {name} on {first}: columns of {', '.join(labels)}"))
    caption = (
        "A row is a seed. From left to right the same sampler takes more steps; the last column is where the exact "
        "path from the same noise ends. A good sampler looks like that column early; one that adds noise draws "
        "another picture of the same prompt."
    )
    return Section(f"Pictures, {first}", caption, figures)


def to_picture(problem: Problem, x: Tensor) -> Tensor:
    """x (b c h w) at the smallest level -> pictures (b 3 h w) in [-1, 1]."""
    if problem.picture is None:
        raise ValueError("this problem has no pictures")
    return problem.picture(x / sqrt(1 + problem.levels.sigma_min**2)).clamp(-1, 1)
