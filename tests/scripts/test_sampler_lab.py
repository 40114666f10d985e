"""scripts/sampler_lab.py as a user runs it, and the problem with a known answer that it is run on."""

import argparse
import csv
import os
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from lab.mixture import FIVE, Mixture, sliced_wasserstein
from lab.plots import find_limits
from samplers import ode
from samplers.basics import karras
from support.paths import NO_NETWORK, ROOT

SCRIPT = ROOT / "scripts/sampler_lab.py"


@pytest.fixture(autouse=True)
def one_thread():
    """On tensors this small a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def read(folder) -> dict:
    """(sampler, schedule, steps) -> (evaluations, error, distance)"""
    with open(folder / "lab.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        (r["sampler"], r["schedule"], int(r["steps"])): (int(r["evaluations"]), float(r["error"]), float(r["distance"]))
        for r in rows
    }


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """One run on the mixture, looked at by several tests."""
    out = tmp_path_factory.mktemp("lab")
    command = [
        sys.executable,
        str(SCRIPT),
        "--samplers",
        "euler",
        "heun",
        "DPM++ 2M",
        "euler_ancestral",
        "--schedules",
        "exponential",
        "karras:leading",
        "--steps",
        "80",
        "40",
        "10",
        "--count",
        "1000",
        "--out",
        str(out),
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(out / "lab.html")
    return out


def test_errors_fall_with_the_order_of_the_sampler(lab):
    runs = read(lab)
    assert len(runs) == 4 * 2 * 3
    for name, order, cost in [("euler", 1, 1), ("heun", 2, 2), ("dpmpp_2m", 2, 1)]:
        (few, coarse, _), (many, fine, _) = (runs[name, "exponential", steps] for steps in (40, 80))
        assert (few, many) == (40 * cost, 80 * cost)
        assert np.log2(coarse / fine) == pytest.approx(order, abs=0.35)  # 80 steps are not yet infinitely many
        assert fine < {"euler": 0.03, "heun": 1e-3, "dpmpp_2m": 2e-3}[name]
    for (name, schedule, steps), (_, error, distance) in runs.items():
        assert np.isnan(error) == (name == "euler_ancestral") and 0 < distance < 1
        # karras between the ends of leading begins at sigma 8 to 14, not 14.6, and misses what lies above
        if schedule == "karras:leading" and steps == 10 and name != "euler_ancestral":
            assert error > 0.02


def test_error_is_the_distance_from_the_exact_path(lab):
    """Computed once more: Euler with 80 steps against Heun with 400, from the noise of seed 0."""
    generator = torch.Generator().manual_seed(0)
    FIVE.draw(1000, generator)
    low, high = 0.02916753478348255, 14.614646911621094
    x = torch.randn(1, 2, 1, 1000, generator=generator, dtype=torch.float64) * (1 + high**2) ** 0.5
    *_, exact = ode.heun(FIVE.denoise, x, karras(low, high, 401))
    *_, found = ode.euler(FIVE.denoise, x, [high * (low / high) ** (i / 80) for i in range(81)])
    expected = (found.x - exact.x).square().mean().sqrt().item()
    assert read(lab)["euler", "exponential", 80][1] == pytest.approx(expected, rel=1e-3)  # Heun's own error


def test_the_exact_path_is_more_exact_than_heun():
    """Two runs, of 100 and 200 steps, are combined: what remains is far below the error of the finer one."""
    lab = runpy.run_path(str(SCRIPT), run_name="sampler_lab")
    problem = lab["make_mixture_problem"](argparse.Namespace(seed=0, count=200))
    path, truth = lab["find_exact_path"](problem, 100), lab["find_exact_path"](problem, 800)
    assert [sigma for sigma, _ in path] == karras(problem.levels.sigma_min, problem.levels.sigma_max, 101)
    *_, fine = ode.heun(FIVE.denoise, path[0][1], karras(problem.levels.sigma_min, problem.levels.sigma_max, 201))
    error = lambda x: (x - truth[-1][1]).square().mean().sqrt().item()
    assert error(path[-1][1]) < 0.1 * error(fine.x) and error(path[50][1]) > 0.01  # half way is elsewhere


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.links, self.images, self.cells, self.titles, self.now = [], [], [], [], ""
        self.alts, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.now = tag
        self.images += [value for key, value in attrs if tag == "img" and key == "src"]
        self.alts += [value for key, value in attrs if tag == "img" and key == "alt"]
        self.links += [value for key, value in attrs if key in ("href", "src") and not value.startswith("data:")]

    def handle_data(self, data):
        if self.now == "td" and data.strip():
            self.cells.append(data.strip())
        if self.now == "h2":
            self.titles.append(data.strip())
        if self.now == "p":
            self.texts.append(data.strip())


def test_page_holds_all_and_needs_nothing(lab):
    text = (lab / "lab.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.links and not re.search(r"https?:|url\(|@import|<script", text)
    assert len(page.images) == len(list(lab.glob("*.png"))) == 2 + 2 + 1 + 4
    assert all(image.startswith("data:image/png;base64,iVBOR") for image in page.images)
    assert {"Error against cost", "Where 10 steps go", "Paths of 10 steps, exponential"} <= set(page.titles)
    runs = read(lab)
    for (name, _, _), (_, error, _) in runs.items():
        assert (f"{error:.2e}" if name != "euler_ancestral" else "–") in page.cells
    for k in range(0, len(page.cells), 6):  # sampler, schedule, three errors, order
        name, schedule = page.cells[k : k + 2]
        slope = np.log2(runs[name, schedule, 40][1] / runs[name, schedule, 80][1])
        assert page.cells[k + 5] == ("–" if np.isnan(slope) else f"{slope:.1f}")
    for path in lab.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 250 and np.array(image.convert("L")).std() > 5  # something is drawn


def test_page_explains_itself(lab):
    """Every section says what a line, a dot and a cross are and names what to see; every image has words of its own."""
    page = Page((lab / "lab.html").read_text(encoding="utf-8"))
    about, errors, distances, levels, paths, runs, *_ = [text for text in page.texts if text]
    assert "A line is a sampler and a dot one run" in errors and "same axes" in errors
    found = {key: error for key, (_, error, _) in read(lab).items() if not np.isnan(error)}
    best = min(found, key=found.get)
    assert f"smallest error is that of {best[0]} on {best[1]}: {found[best]:.2g}" in errors
    assert "dotted line is the distance of two exact draws" in distances
    assert "mark a noise level" in levels and "exponential has" in levels
    assert "grey line is the exact path" in paths and "black cross its end" in paths
    assert len(set(page.alts)) == len(page.images) and min(map(len, page.alts)) > 40
    assert any("euler from" in alt and "karras:leading" in alt for alt in page.alts)


def test_plots_of_one_row_have_equal_axes():
    """The limits hold every line of every schedule, and the floor."""
    lines = [([5, 80], [0.2, 0.001]), ([10, 40], [3.0, 0.5])]
    (left, right), (low, high) = find_limits(lines, floor=2e-4)
    assert 4 < left < 5 and 80 < right < 100 and 5e-5 < low < 2e-4 and 3 < high < 10


@pytest.fixture
def inside(monkeypatch):
    """Run the program in this process, which has imported what it needs: flags -> exit status."""

    def run(*flags) -> int:
        monkeypatch.setattr(sys, "argv", ["sampler_lab.py", *map(str, flags)])
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as stop:
            return stop.code
        return 0

    return run


def test_model(inside, tmp_path):
    assert (
        inside(
            "--problem",
            "model",
            "--samplers",
            "dpmpp_2m",
            "dpmpp_2m_sde",
            "--schedules",
            "karras",
            "--steps",
            3,
            6,
            "--count",
            1,
            "--guidance",
            1,
            "--seed",
            3,
            "--out",
            tmp_path,
        )
        == 0
    )
    runs = read(tmp_path)
    assert runs["dpmpp_2m", "karras", 6][1] < 0.6 * runs["dpmpp_2m", "karras", 3][1]
    assert np.isnan(runs["dpmpp_2m_sde", "karras", 6][1])
    with Image.open(tmp_path / "pictures-dpmpp_2m.png") as image:
        assert image.convert("RGB").getcolors(10**7) is not None
        assert len(image.convert("RGB").getcolors(10**7)) > 1000  # a picture, not a flat field


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--samplers", "eulr"), "error: unknown sampler 'eulr': choose one of"),
        (("--schedules", "caras"), "error: unknown schedule 'caras': choose one of"),
        (("--steps", 0), "error: 0 steps: choose 1 to 1000"),
        (("--count", 0), "error: --count: choose at least 1"),
        (("--count", 10**18), "error: --count: choose at least 1, and at most 100,000 for the mixture"),
        (("--seed", 2**64), "error: --seed: choose 0 or more, and at most 18446744073709"),
        (("--model", "nowhere"), "error: --model and --guidance have no effect on the mixture: add --problem model"),
        (("--problem", "model", "--guidance", "nan"), "error: --guidance nan: must be a number that is finite"),
        (("--problem", "model", "--prompt", "\udcff"), "error: --prompt: holds bytes that are not UTF-8"),
        (("--problem", "model", "--model", "nowhere"), "error: nowhere"),
        (("--problem", "model", "--samplers", "euler", "euler_cfg_pp"), "error: euler_cfg_pp: CFG++ follows no path"),
    ],
)
def test_mistakes_end_in_one_line(inside, capsys, tmp_path, flags, message):
    assert inside(*flags, "--out", tmp_path / "out") == 2 and not (tmp_path / "out").exists()
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(message) and printed.err.count("\n") == 1


def test_without_matplotlib_one_line_says_what_to_install(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not installed')")
    paths = os.pathsep.join([str(tmp_path), str(NO_NETWORK), str(ROOT)])
    run = subprocess.run(
        [sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
        timeout=1800,
    )
    assert run.returncode == 2 and run.stderr.startswith("error: plots need matplotlib: pip install")
    assert run.stderr.count("\n") == 1


def test_denoiser_of_the_mixture_is_the_gradient_of_its_density():
    """x0 = x + sigma^2 d log p / dx (Tweedie), by automatic differentiation of the density itself."""
    for mixture in (
        FIVE,
        Mixture(
            torch.randn(3, 4, dtype=torch.float64),
            torch.tensor([0.2, 0.5, 1.0]).double(),
            torch.tensor([0.5, 0.2, 0.3]).double(),
        ),
    ):
        channels = mixture.centres.shape[1]
        for sigma in (0.05, 0.7, 12.0):
            x = torch.randn(2, channels, 3, 2, dtype=torch.float64, requires_grad=True)
            points = x.movedim(1, -1).reshape(-1, 1, channels)
            gaussians = torch.distributions.Normal(mixture.centres, (mixture.spreads**2 + sigma**2).sqrt()[:, None])
            density = torch.logsumexp(gaussians.log_prob(points).sum(-1) + mixture.shares.log(), dim=-1).sum()
            expected = x + sigma**2 * torch.autograd.grad(density, x)[0]
            assert torch.allclose(mixture.denoise(x, sigma), expected, rtol=1e-10, atol=1e-11)


def test_draws_and_their_distance():
    generator = torch.Generator().manual_seed(1)
    a, b = FIVE.draw(20000, generator), FIVE.draw(20000, generator)
    assert torch.allclose(a.mean(0), (FIVE.shares[:, None] * FIVE.centres).sum(0), atol=0.03)  # 1 / sqrt(20000), x 4
    assert sliced_wasserstein(a, b) < 0.04
    shift = torch.tensor([3.0, 0.0], dtype=torch.float64)
    assert sliced_wasserstein(a, a + shift) == pytest.approx(3 / 2**0.5, rel=1e-9)  # mean of cos^2 is a half
