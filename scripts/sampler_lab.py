"""Compare samplers and schedules: network evaluations against error, orders, levels and paths, on one page.

    python scripts/sampler_lab.py                                    # on a mixture of Gaussians, in seconds
    python scripts/sampler_lab.py --samplers heun dpmpp_2m uni_pc --schedules karras beta --steps 5 10 20 40 80
    python scripts/sampler_lab.py --problem model --prompt "a red apple" --steps 4 8 16    # on the small model

The mixture lies in two dimensions and its denoiser is known exactly. The error is the root mean square of the
distance from where the exact path of the same noise ends; samplers that add noise have no such path, so only the
distance of the distributions tells of them. Every run ends at the smallest trained level. Writes lab.html, which
needs no other file, lab.csv, and the plots as PNG.
"""

import argparse
import base64
import csv
import html
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from math import log, sqrt
from pathlib import Path
from string import Template
from typing import NamedTuple

import torch
from samplers.schedule import NoiseTable, choose, karras, noise_table
from torch import Tensor
from tqdm import tqdm

import weights
from lab import plots
from ldm import conditioning, guidance, tasks
from samplers import SAMPLERS, find
from samplers.denoiser import denoiser
from samplers.mixture import FIVE, sliced_wasserstein
from samplers.noise import BrownianTree, Streams
from samplers.ode import heun

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Problem(NamedTuple):
    """Something to sample from unit Gaussian `noise` (b c h w), on its device and in its dtype."""

    denoise: Callable[[Tensor, float], Tensor]
    levels: NoiseTable
    noise: Tensor
    seeds: list[int]
    samples: Tensor | None = None  # draws of the true distribution
    picture: Callable[[Tensor], Tensor] | None = None


class Run(NamedTuple):
    sampler: str
    schedule: str
    steps: int
    evaluations: int
    error: float  # from the end of the exact path; NaN for a sampler that adds noise
    distance: float  # of the distributions; NaN where that is not known
    end: Tensor


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=("mixture", "model"), default="mixture")
    parser.add_argument(
        "--samplers",
        nargs="+",
        metavar="NAME",
        default=["euler", "heun", "dpmpp_2m", "uni_pc", "lms", "euler_ancestral"],
    )
    parser.add_argument("--schedules", nargs="+", default=["karras", "normal", "ays_sdxl"], metavar="NAME")
    parser.add_argument("--steps", nargs="+", type=int, metavar="N", help="(default: 5 10 20 40 80; model: 4 8 16)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="points of the mixture (default: 2000) or pictures (default: 2)")
    parser.add_argument("--model", help="a folder in the diffusers layout (default: the miniature)")
    parser.add_argument("--prompt", default="a red apple")
    parser.add_argument("--guidance", type=float, help="1 or less: off")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the model")
    parser.add_argument("--out", type=Path, default=Path("outputs/lab"), help="a folder")
    return parser.parse_args()


def fail(message: str):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


# What is sampled


def mixture_problem(args: argparse.Namespace) -> Problem:
    generator, count = torch.Generator().manual_seed(args.seed), args.count or 2000
    samples = FIVE.draw(count, generator)
    noise = torch.randn(1, 2, 1, count, generator=generator, dtype=torch.float64)
    return Problem(FIVE.denoise, noise_table(), noise, [args.seed], samples)


def model_problem(args: argparse.Namespace) -> Problem:
    model = weights.load(args.model or weights.MINIATURE, dtype=DTYPES[args.dtype], device=args.device)
    facts, seeds = model.facts, [args.seed + k for k in range(args.count or 2)]
    levels = tasks.noise_levels(facts.noise)
    sizes = conditioning.Sizes(original=(facts.size, facts.size), target=(facts.size, facts.size))
    cond, uncond = (
        conditioning.encode(model.texts, model.tokenizer, facts, [text] * len(seeds), sizes)
        for text in (args.prompt, None)
    )
    scale = facts.guidance if args.guidance is None else args.guidance
    network = (
        guidance.classifier_free(model.unet, cond, uncond, scale) if scale > 1 else guidance.condition(model.unet, cond)
    )
    side = facts.size // facts.vae.factor
    noise = Streams(seeds, (facts.vae.latent_channels, side, side), args.device).draw()
    return Problem(denoiser(network, levels, facts.prediction), levels, noise, seeds, picture=model.to_image)


# Measurement


def start(problem: Problem, sigma: float) -> Tensor:
    return problem.noise * sqrt(1 + sigma**2)


def exact_path(problem: Problem, steps: int) -> list[tuple[float, Tensor]]:
    """(sigma, x) along the path of problem.noise, from Heun's method twice: the error of its order cancels."""
    coarse, fine = (karras(problem.levels.sigma_min, problem.levels.sigma_max, n + 1) for n in (steps, 2 * steps))
    first = start(problem, coarse[0])
    ends = [[step.x for step in heun(problem.denoise, first, sigmas)] for sigmas in (coarse, fine)]
    return [(coarse[0], first), *((sigma, (4 * b - a) / 3) for sigma, a, b in zip(coarse[1:], ends[0], ends[1][1::2]))]


def sample(problem: Problem, name: str, schedule: str, steps: int, exact: Tensor) -> tuple[Run, list]:
    """One run, and its states (sigma, x)."""
    sampler, device, evaluations, draws = SAMPLERS[name], problem.noise.device, 0, 0
    options = {"table": tasks.trained_table(problem.levels, name)} if sampler.takes_table else {}

    def counted(x: Tensor, sigma: float) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        x0 = problem.denoise(x, sigma)
        return (x0, x0) if sampler.takes_pairs else x0

    sigmas, _ = choose(problem.levels, schedule, steps, ends_at_zero=False)
    shape = problem.noise.shape[1:]
    source = (
        BrownianTree(problem.seeds, shape, sigmas[-1] / 2, 2 * sigmas[0], device)
        if sampler.noise == "brownian"
        else Streams([seed + 1000 for seed in problem.seeds], shape, device)
    )

    def noise(sigma: float, lower: float) -> Tensor:
        nonlocal draws
        draws += 1
        return source(sigma, lower)

    x = start(problem, sigmas[0])
    made = list(sampler.run(counted, x, sigmas, *([noise] if sampler.stochastic else []), **options))
    states = [(step.sigma, x) for step, x in zip(made, [x, *(step.x for step in made)])] + [(sigmas[-1], made[-1].x)]
    end = made[-1].x
    error = float("nan") if draws else (end - exact).square().mean().sqrt().item()
    distance = float("nan") if problem.samples is None else sliced_wasserstein(end[0, :, 0].T, problem.samples)
    return Run(name, schedule, steps, evaluations, error, distance, end), states


def order(runs: list[Run]) -> float:
    """How fast the error falls: the slope of log error over log evaluations between the last two runs."""
    if len(runs) < 2 or not 0 < runs[-1].error < float("inf") or runs[-1].evaluations == runs[-2].evaluations:
        return float("nan")
    return log(runs[-2].error / runs[-1].error) / log(runs[-1].evaluations / runs[-2].evaluations)


# Plots


def draw_plots(plt, args: argparse.Namespace, problem: Problem, runs: list[Run], states: dict, exact: list) -> dict:
    """Title of a section of the page -> its plots."""
    names, first, shown, files = args.samplers, args.schedules[0], middle(args.steps), {}

    def against_cost(value: str, ylabel: str, floor: float | None = None) -> list[Path]:
        def draw(axes, schedule: str):
            of = {name: [run for run in runs if (run.sampler, run.schedule) == (name, schedule)] for name in names}
            lines = {
                name: ([run.evaluations for run in found], [getattr(run, value) for run in found])
                for name, found in of.items()
                if getattr(found[0], value) > 0
            }
            plots.curves(axes, lines, names, "network evaluations", ylabel, floor)

        return [
            plots.figure(plt, args.out / f"{value}-{name.replace(':', '-')}.png", name, partial(draw, schedule=name))
            for name in args.schedules
        ]

    if any(run.error == run.error for run in runs):
        files["Error against cost"] = against_cost("error", "root mean square error")
    if problem.samples is not None:
        fresh = FIVE.draw(len(problem.samples), torch.Generator().manual_seed(args.seed + 1))
        files["Distance of the distributions"] = against_cost(
            "distance", "sliced Wasserstein distance", sliced_wasserstein(fresh, problem.samples)
        )
    chosen = {name: choose(problem.levels, name, shown, ends_at_zero=False)[0] for name in args.schedules}
    files[f"Where {shown} steps go"] = [
        plots.figure(
            plt, args.out / "levels.png", "", lambda axes: plots.levels(axes, chosen), 6.4, 0.9 + 0.36 * len(chosen)
        )
    ]
    if problem.samples is not None:
        files[f"Paths of {shown} steps, {first}"] = [
            plots.figure(
                plt,
                args.out / f"paths-{name}.png",
                name,
                lambda axes, name=name, k=k: plots.paths(
                    axes, states[name], exact, problem.samples, plots.colour(k), 4 if SAMPLERS[name].noise else 14
                ),
                height=4.2,
            )
            for k, name in enumerate(names)
        ]
    else:
        files[f"Pictures, {first}"] = [
            plots.figure(
                plt,
                args.out / f"pictures-{name}.png",
                name,
                lambda axes, name=name: plots.pictures(axes, *gallery(problem, runs, name, first, exact[-1][1])),
                height=3.4,
            )
            for name in names
        ]
    return files


def gallery(problem: Problem, runs: list[Run], name: str, schedule: str, exact: Tensor) -> tuple[list, list[str]]:
    """What a sampler draws with few and with many steps, and the end of the exact path."""
    of = [run for run in runs if (run.sampler, run.schedule) == (name, schedule)]
    ends, labels = [run.end for run in of] + [exact], [f"{run.evaluations} evaluations" for run in of] + ["exact path"]
    return [problem.picture(end / sqrt(1 + problem.levels.sigma_min**2)).clamp(-1, 1) for end in ends], labels


def middle(steps: list[int]) -> int:
    """The count of steps to show levels and paths of: few enough to see them."""
    return min(steps, key=lambda n: abs(n - 10))


# The page


def write_page(args: argparse.Namespace, runs: list[Run], drawn: dict[str, list[Path]], about: str) -> Path:
    """One file that needs no other."""

    def image(path: Path) -> str:
        data = base64.b64encode(path.read_bytes()).decode()
        return f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">'

    def number(value: float, form: str) -> str:
        return format(value, form) if value == value else "–"

    sections = "\n".join(
        f'<h2>{html.escape(title)}</h2>\n<div class="{"plots" if files[1:] else "alone"}">'
        f"{''.join(map(image, files))}</div>"
        for title, files in drawn.items()
    )
    rows = []
    for name, schedule in product(args.samplers, args.schedules):
        of = [run for run in runs if (run.sampler, run.schedule) == (name, schedule)]
        cells = [name, schedule, *(number(run.error, ".2e") for run in of), number(order(of), ".1f")]
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in cells) + "</tr>")
    page = args.out / "lab.html"
    template = Template(Path(plots.__file__).with_name("page.html").read_text(encoding="utf-8"))
    heads = "".join(f"<th>{n} steps" for n in args.steps)
    page.write_text(
        template.substitute(about=html.escape(about), sections=sections, heads=heads, rows="\n".join(rows)),
        encoding="utf-8",
    )
    return page


def write_table(args: argparse.Namespace, runs: list[Run]):
    with open(args.out / "lab.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(Run._fields[:-1])
        table.writerows(run[:-1] for run in runs)


def experiment(args: argparse.Namespace, plt):
    args.samplers = list(dict.fromkeys(find(name) for name in args.samplers))
    args.schedules = list(dict.fromkeys(args.schedules))
    two = [name for name in args.samplers if SAMPLERS[name].takes_pairs]
    if two and args.problem == "model":
        raise ValueError(
            f"{', '.join(two)}: CFG++ follows no path that an error could be measured from: leave it out, "
            "or take the mixture, which has no guidance"
        )
    problem = mixture_problem(args) if args.problem == "mixture" else model_problem(args)
    for schedule, steps in product(args.schedules, args.steps):
        choose(problem.levels, schedule, steps)  # refuse a wrong name before the first run
    exact = exact_path(problem, max(16, 2 * max(args.steps)) if problem.picture else 400)
    runs, states = [], {}
    with tqdm(total=len(args.samplers) * len(args.schedules) * len(args.steps), unit="run", disable=None) as bar:
        for name, schedule, steps in product(args.samplers, args.schedules, args.steps):
            run, kept = sample(problem, name, schedule, steps, exact[-1][1])
            runs.append(run)
            if (schedule, steps) == (args.schedules[0], middle(args.steps)):
                states[name] = kept
            bar.update()
    args.out.mkdir(parents=True, exist_ok=True)
    drawn = draw_plots(plt, args, problem, runs, states, exact)
    write_table(args, runs)
    what = (
        f"{problem.noise.shape[-1]} points of a mixture of five Gaussians"
        if problem.samples is not None
        else f"latents of {args.model or 'the miniature'} for {args.prompt!r}"
    )
    print(
        write_page(
            args,
            runs,
            drawn,
            f"Sampled: {what}, seed {args.seed}, from noise level "
            f"{problem.levels.sigma_max:.4g} down to {problem.levels.sigma_min:.3g}.",
        )
    )


def main():
    args = arguments()
    args.steps = sorted(set(args.steps or ([5, 10, 20, 40, 80] if args.problem == "mixture" else [4, 8, 16])))
    if args.count is not None and args.count < 1:
        fail("--count: choose at least 1")
    if args.seed < 0:
        fail("--seed: choose 0 or more")
    try:
        import matplotlib.pyplot as plt

        plt.switch_backend("Agg")
    except ImportError:
        fail("plots need matplotlib: pip install matplotlib, or this project with its extra viz")
    try:
        with torch.no_grad():
            experiment(args, plt)
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        sys.exit(130)
    except (ValueError, ArithmeticError, OSError, RuntimeError) as error:  # CheckpointError is a ValueError
        fail(str(error).splitlines()[0])


if __name__ == "__main__":
    main()
