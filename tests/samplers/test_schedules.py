"""Schedules against diffusers, k-diffusion and the formulas of ComfyUI and A1111; the faults of these by name."""

import ast
import hashlib
import math
import struct
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from scipy import stats

from samplers import published, schedules
from samplers.schedules import (
    EDM,
    EXACT,
    SCHEDULES,
    Convention,
    at_times,
    choose,
    cut,
    noise_table,
    start_std,
    tables,
    with_times,
)
from samplers.schedules.beta_quantile import quantile

BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SD = noise_table()
T = len(SD.sigmas)
COUNTS = [1, 2, 5, 14, 15, 20, 50, 61, 103, 1000]
FEW = [2, 15, 20]  # for classes that share a method with one that has them all
RANGES = [name for name, schedule in SCHEDULES.items() if schedule.of == "range"]
DPM = Convention(drops_last=True, whole_times=True)
LOW = replace(DPM, ends_at_zero=False)
EULER = Convention(unit_variance=False)
CLASSES = {  # diffusers' class -> how it chooses; `extra` are its own settings
    "EulerDiscreteScheduler": EXACT,
    "LMSDiscreteScheduler": EXACT,
    "EulerAncestralDiscreteScheduler": EXACT,
    "HeunDiscreteScheduler": EXACT,
    "DDIMScheduler": Convention(whole_times=True),
    "DDPMScheduler": Convention(whole_times=True),
    "DPMSolverMultistepScheduler": DPM,
    "UniPCMultistepScheduler": DPM,
    "DEISMultistepScheduler": LOW,
    "SASolverScheduler": LOW,
}
SPACED = [name for name in CLASSES if name[:4] not in ("DDIM", "DDPM")]  # those that keep a list of sigmas
SKIPPED = {
    ("linspace", 1): "begins at time 0",
    ("leading", 1000): "leaves the table",
    ("trailing", 61): "a step too many",
    ("trailing", 103): "a step too many",
}  # faults, tested below


def theirs(name: str, steps: int, **settings):
    """(times, sigmas with the end) of a diffusers scheduler; of Heun's list each level once."""
    scheduler = getattr(diffusers, name)(**BETAS, steps_offset=1, **settings)
    scheduler.set_timesteps(steps)
    times, sigmas = scheduler.timesteps, getattr(scheduler, "sigmas", None)
    if name.startswith("Heun"):
        times, sigmas = times[::2], torch.cat([sigmas[:-1:2], sigmas[-1:]])
    return times.double().numpy(), None if sigmas is None else sigmas.double().numpy()


@pytest.mark.parametrize("schedule", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", CLASSES)
def test_spacings_equal_diffusers(name, schedule):
    for steps in COUNTS:
        if (schedule, steps) in SKIPPED or CLASSES[name].drops_last and steps == 1000:
            continue  # there is no time more than 1000 that could be dropped
        sigmas, times = choose(SD, schedule, steps, CLASSES[name])
        expected_times, expected_sigmas = theirs(name, steps, timestep_spacing=schedule)
        assert np.allclose(list(times.values()), expected_times, rtol=1e-7)  # float32 rounding of the fractions
        if name in SPACED:
            assert np.allclose(sigmas, expected_sigmas, rtol=3e-7, atol=0)  # theirs are rounded to float32


@pytest.mark.parametrize("law", ["karras", "exponential", "beta"])
@pytest.mark.parametrize(
    "name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler", "SASolverScheduler"]
)
def test_ranges_equal_those_of_diffusers_multistep_classes(name, law):
    """Over the whole table; the times of exponential and beta are cut off, those of karras are rounded."""
    for steps in COUNTS[1:] if name.startswith("DPM") else FEW:
        sigmas, times = published.choose_range(SD, law, steps, CLASSES[name])
        expected_times, expected_sigmas = theirs(name, steps, **{f"use_{law}_sigmas": True})
        assert np.allclose(sigmas, expected_sigmas, rtol=1e-7, atol=0)
        different = sum(a != b for a, b in zip(times.values(), expected_times))
        assert different <= steps // 1000  # one of a thousand, 927.00008, is nearer to whole than float32 can tell


@pytest.mark.parametrize("law", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("within", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler"])
def test_ranges_within_a_spacing_equal_those_of_diffusers_euler_family(name, within, law):
    for steps in COUNTS[:-1] if name.startswith("Euler") else FEW:
        if (within, steps) in SKIPPED:
            continue
        sigmas, times = choose(SD, f"{law}:{within}", steps)
        expected_times, expected_sigmas = theirs(name, steps, timestep_spacing=within, **{f"use_{law}_sigmas": True})
        assert np.allclose(sigmas, expected_sigmas, rtol=1e-7, atol=0)
        # Interpolated among float32 logarithms: 1e-7 of a logarithm is up to 1e-4 of the distance between two times.
        assert np.allclose([times[s] for s in sigmas[:-1]], expected_times, atol=2e-4)


def test_edm_ranges_equal_diffusers():
    for law in ("karras", "exponential"):
        for steps in COUNTS[1:]:
            scheduler = diffusers.EDMEulerScheduler(sigma_schedule=law)
            scheduler.set_timesteps(steps)
            sigmas, times = choose(EDM(), law, steps)
            assert np.allclose(sigmas, scheduler.sigmas, rtol=1e-6)
            assert np.allclose(list(times.values()), scheduler.timesteps, atol=1e-6)


def test_times_of_distilled_models_equal_diffusers():
    for steps in range(1, 51):
        assert schedules.lcm(steps) == list(theirs("LCMScheduler", steps)[0])
    assert schedules.lcm(4) == [999, 759, 499, 259]


def k_diffusion() -> dict:
    """The functions of k-diffusion that make schedules, without what the rest of the package wants to import."""
    tree = ast.parse(Path(find_spec("k_diffusion").origin).with_name("sampling.py").read_text())
    wanted = [node for node in tree.body if getattr(node, "name", "").startswith(("get_sigmas_", "append_zero"))]
    names = {"torch": torch, "math": math}
    exec(compile(ast.Module(wanted, []), "k_diffusion/sampling.py", "exec"), names)
    return names


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("levels", [SD, EDM()], ids=["SD", "EDM"])
def test_ranges_equal_k_diffusion(double, levels):
    """Both in float64: a few roundings of 1e-16, which the power of 7 multiplies."""
    theirs_of, low, high = k_diffusion(), levels.sigma_min, levels.sigma_max
    for steps in COUNTS:
        pairs = [
            (schedules.karras(low, high, steps), theirs_of["get_sigmas_karras"](steps, low, high)),
            (schedules.exponential(low, high, steps), theirs_of["get_sigmas_exponential"](steps, low, high)),
            (
                schedules.polyexponential(low, high, steps, rho=1.7),
                theirs_of["get_sigmas_polyexponential"](steps, low, high, rho=1.7),
            ),
            (
                schedules.vp(math.sqrt(math.expm1(19.9e-6 / 2 + 1e-4)), math.sqrt(math.expm1(19.9 / 2 + 0.1)), steps),
                theirs_of["get_sigmas_vp"](steps),
            ),
        ]
        for ours, expected in pairs:
            assert np.allclose([*ours, 0.0], expected, rtol=1e-12, atol=0)


def comfy_and_a1111(name: str, n: int) -> list[float]:
    """Their formulas, with numpy; without the end."""
    table, low, high = np.array(SD.sigmas), SD.sigma_min, SD.sigma_max
    ramp = np.linspace(0, 1, n)
    between = lambda t: np.exp(np.interp(t, np.arange(T), np.log(table)))
    match name:
        case "normal":
            return between(np.linspace(T - 1, 0, n))
        case "sgm_uniform":
            return between(np.linspace(T - 1, 0, n + 1)[:-1])
        case "simple":
            return [table[-(1 + int(i * (T / n)))] for i in range(n)]
        case "beta":
            return low + stats.beta.ppf(1 - ramp, 0.6, 0.6) * (high - low)
        case "kl_optimal":
            return np.tan(ramp * np.arctan(low) + (1 - ramp) * np.arctan(high))
        case "beta_times":
            return table[np.rint(stats.beta.ppf(1 - np.linspace(0, 1, n, endpoint=False), 0.6, 0.6) * 999).astype(int)]
        case "linear_quadratic":
            if n == 1:
                return [high]
            even, rest = n // 2, n - n // 2
            bend = (even - 0.025 * n) / (even * rest**2)
            tilt = 0.025 / even - 2 * (even - 0.025 * n) / rest**2
            fall = [i * 0.025 / even if i < even else bend * i**2 + tilt * i + bend * even**2 for i in range(n)]
            return [high * (1 - f) for f in fall]


@pytest.mark.parametrize(
    "name", ["normal", "sgm_uniform", "simple", "beta", "kl_optimal", "beta_times", "linear_quadratic"]
)
def test_schedules_equal_comfyui_and_a1111(name):
    for steps in COUNTS:
        if name == "beta_times" and steps == 1000:
            continue  # theirs loses steps, see below
        sigmas, _ = choose(SD, name, steps)
        # Quantiles are good to 1e-14, and the tangent near its pole multiplies its argument's rounding by 15.
        assert np.allclose(sigmas[:-1], comfy_and_a1111(name, steps), rtol=1e-12, atol=0), steps


@pytest.mark.parametrize("convention", [EXACT, EULER, DPM], ids=["exact", "euler", "dpm"])
def test_sgm_is_stabilitys_discretisation(convention):
    """LegacyDDPMDiscretization: times by numpy.linspace cut down to whole ones, and a start at sqrt(1 + sigma^2)."""
    fine = noise_table(precision="float64")
    for steps in COUNTS:
        times = np.linspace(T - 1, 0, steps, endpoint=False).astype(int)
        if steps == T:
            times = np.arange(T)[::-1]
        sigmas, told = choose(fine, "sgm", steps, convention)
        assert sigmas == [*np.array(fine.sigmas)[times], 0.0], steps
        assert list(told.values()) == list(times)
        assert start_std(sigmas[0], "sgm", convention) == math.sqrt(1 + sigmas[0] ** 2)


def test_published_values_of_ten_steps():
    """Ten steps on Stable Diffusion's table, four decimals."""

    def rounded(schedule, *convention):
        sigmas, _ = choose(SD, schedule, 10, *convention)
        assert sigmas[-1] == 0
        return [round(s, 4) for s in sigmas[:-1]]

    trailing = [14.6146, 8.3028, 5.0878, 3.3211, 2.2765, 1.6129, 1.1606, 0.8299, 0.5693, 0.3417]
    leading = [8.3907, 5.1344, 3.3478, 2.2929, 1.6237, 1.1682, 0.8357, 0.5741, 0.3462, 0.0413]
    assert rounded("karras") == [14.6146, 9.1029, 5.4784, 3.1686, 1.7494, 0.9141, 0.4469, 0.2014, 0.0819, 0.0292]
    assert rounded("exponential") == [14.6146, 7.3249, 3.6712, 1.8400, 0.9222, 0.4622, 0.2317, 0.1161, 0.0582, 0.0292]
    assert rounded("normal") == [14.6146, 7.8399, 4.6092, 2.9183, 1.9502, 1.3449, 0.9324, 0.6250, 0.3687, 0.0292]
    assert rounded("sgm_uniform") == [14.6146, 8.3072, 5.0924, 3.3251, 2.2797, 1.6156, 1.1629, 0.8319, 0.5712, 0.3437]
    assert rounded("simple") == rounded("trailing") == trailing
    assert rounded("leading") == rounded("ddim_uniform") == leading
    assert rounded("linspace", DPM) == [14.6146, 8.3028, 5.0878, 3.3211, 2.2765, 1.6183, 1.1644, 0.8328, 0.5717, 0.3439]
    assert rounded("beta_times") == [14.6146, 11.5428, 7.3718, 4.3728, 2.6152, 1.6183, 1.0273, 0.6549, 0.3955, 0.1991]
    assert rounded("beta") == [14.6146, 13.9278, 12.4910, 10.5976, 8.4424, 6.2014, 4.0462, 2.1528, 0.7160, 0.0292]
    assert rounded("kl_optimal") == [14.6146, 4.2324, 2.3937, 1.5971, 1.1330, 0.8152, 0.5729, 0.3725, 0.1953, 0.0292]
    assert rounded("ays_sd15") == [14.6146, 6.4746, 3.8637, 2.6946, 1.8842, 1.3944, 0.9643, 0.6524, 0.3977, 0.1515]
    assert rounded("ays_sdxl") == [14.6146, 6.3184, 3.7682, 2.1811, 1.3405, 0.8621, 0.5551, 0.3799, 0.2332, 0.1114]
    assert rounded("gits") == [14.6146, 5.8552, 2.8448, 1.6705, 1.0890, 0.7481, 0.5012, 0.3210, 0.1989, 0.0982]
    # A1111's kl_optimal takes one interval more and ends above 0.
    kl = schedules.kl_optimal(SD.sigma_min, SD.sigma_max, 11)
    assert [round(s, 4) for s in kl] == [
        14.6146,
        4.5650,
        2.6329,
        1.7864,
        1.2948,
        0.9616,
        0.7116,
        0.5094,
        0.3356,
        0.1783,
        0.0292,
    ]
    playground = choose(EDM(), "karras", 8)[0]
    assert playground[0] == 80 and round(playground[1], 4) == 34.9922 and playground[-2] == pytest.approx(0.002)


@pytest.mark.parametrize("schedule", [*SCHEDULES, "karras:leading", "exponential:linspace", "beta:trailing"])
def test_every_schedule_has_the_steps_asked_for(schedule):
    """Decreasing, and never twice the same level: a step that stands still divides by zero in a multistep method."""
    for steps in [1, 2, 3, 14, 61, 201, 1000]:
        for convention in (EXACT, DPM, Convention(whole_times=True, ends_at_zero=False), LOW):
            sigmas, times = choose(SD, schedule, steps, convention)
            assert len(sigmas) == steps + 1 and len(times) == steps
            assert all(a > b for a, b in zip(sigmas[:-1], sigmas[1:-1]))
            assert sigmas[-1] == (0 if convention.ends_at_zero else SD.sigma_min)
            assert all(0 <= t <= 999 for t in times.values())
            if steps < 1000:  # all thousand levels include the smallest, where the last step then stands still
                assert sigmas[-2] > sigmas[-1]
    if schedule in RANGES:
        for steps in (1, 2, 20, 1000):
            sigmas, times = choose(EDM(), schedule, steps)
            assert len(sigmas) == steps + 1 and all(a > b for a, b in zip(sigmas, sigmas[1:]))
            assert times[sigmas[0]] == pytest.approx(math.log(80) / 4)


def test_custom_levels_and_times_equal_diffusers():
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS)
    lists = diffusers.schedulers.AysSchedules
    scheduler.set_timesteps(sigmas=lists["StableDiffusionXLSigmas"])
    sigmas, times = choose(SD, lists["StableDiffusionXLSigmas"], steps=0)
    assert sigmas == lists["StableDiffusionXLSigmas"]
    assert np.allclose([times[s] for s in sigmas[:-1]], scheduler.timesteps, atol=2e-4)  # fractions: 999, 844.89, ...
    assert times[6.315] == pytest.approx(844.89, abs=0.005)
    scheduler.set_timesteps(timesteps=lists["StableDiffusionTimesteps"])
    sigmas, times = at_times(SD, tables.AYS_SD15_TIMES)
    assert list(times.values()) == lists["StableDiffusionTimesteps"]
    assert np.allclose(sigmas, scheduler.sigmas, rtol=1e-7)
    assert list(tables.AYS_SDXL_TIMES) == lists["StableDiffusionXLTimesteps"]
    assert np.allclose(tables.AYS_SD15[:-1], lists["StableDiffusionSigmas"][:-1], rtol=7e-3)  # rounded levels
    assert np.allclose(tables.AYS_SDXL[:-1], lists["StableDiffusionXLSigmas"][:-1], rtol=2e-2)


def test_optimised_lists_lie_on_the_noise_levels():
    """Every digit: AYS are the levels of whole times, in float64; GITS chose among 101 evenly spaced times."""
    kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, T) ** 2)
    double = ((1 - kept) / kept) ** 0.5
    for nodes, times in ((tables.AYS_SD15, tables.AYS_SD15_TIMES), (tables.AYS_SDXL, tables.AYS_SDXL_TIMES)):
        assert np.allclose(nodes, double[[*map(int, times), 0]], rtol=0, atol=6e-11)  # ten decimals
    for level in {level for row in tables.GITS for level in row}:
        assert SD.t(level) / 9.99 == pytest.approx(round(SD.t(level) / 9.99), abs=2e-4)  # of a float32 table


def test_optimised_lists_are_interpolated_in_log_sigma():
    nodes = np.log(tables.AYS_SDXL)[::-1]
    for steps in (4, 10, 13, 25):
        expected = np.exp(np.interp(np.linspace(0, 1, steps + 1), np.linspace(0, 1, 11), nodes))[::-1]
        assert np.allclose([*tables.ays_sdxl(steps), tables.AYS_SDXL[-1]], expected, rtol=1e-12)
    assert all(len(row) == count + 1 for count, row in enumerate(tables.GITS, start=2))
    assert all(a > b for row in tables.GITS for a, b in zip(row, row[1:]))
    assert tables.gits(25)[0] == tables.GITS[-1][0] and len(tables.gits(25)) == 25


def test_zero_terminal_snr_equals_diffusers():
    """The last alpha^2 is 2^-24, so sigma is 4096 (to float32's rounding of 1 - 2^-24)."""
    for law in ("scaled_linear", "linear"):
        reference = diffusers.EulerDiscreteScheduler(**BETAS | dict(beta_schedule=law), rescale_betas_zero_snr=True)
        kept = reference.alphas_cumprod.double()
        table = noise_table(law=law, zero_snr=True)
        # Their betas come from a vectorised loop, which rounds otherwise on some processors: 6e-8 of 1 - beta, and
        # the last of 1000 factors is 0.06.
        assert np.allclose(table.sigmas, ((1 - kept) / kept) ** 0.5, rtol=5e-6)
    assert round(noise_table(zero_snr=True).sigmas[-1]) == 4096 and round(noise_table(zero_snr=True).sigmas[-2]) == 2254
    assert noise_table(zero_snr=True).sigmas[0] == pytest.approx(SD.sigmas[0], rel=1e-5)
    assert choose(noise_table(zero_snr=True), "trailing", 20)[0][0] == pytest.approx(4096)


def digest(table) -> str:
    return hashlib.sha256(struct.pack(f"{len(table.sigmas)}d", *table.sigmas)).hexdigest()[:16]


def test_noise_tables_have_the_same_bits_on_every_processor():
    """Digests of what exactly rounded operations give; run under ATEN_CPU_CAPABILITY=default, avx2 and avx512."""
    assert digest(noise_table()) == "07f8aee2f5dd56f0"
    assert digest(noise_table(zero_snr=True)) == "a4ca59aa8765758f"
    assert digest(noise_table(law="linear", beta_start=0.0001, beta_end=0.02)) == "fa96053898af806d"
    assert digest(noise_table(precision="float64")) == "a18ce3cd98469174"


def test_float64_table_is_that_of_the_original_programs():
    """CompVis, Stability, sgm and ComfyUI compute betas and their product in float64; diffusers in float32."""
    kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, T) ** 2)
    double = noise_table(precision="float64")
    assert np.allclose(double.sigmas, ((1 - kept) / kept) ** 0.5, rtol=1e-12, atol=0)
    apart = np.abs(np.array(SD.sigmas) / np.array(double.sigmas) - 1)
    assert 1.2e-5 < apart.max() < 1.4e-5 and apart.argmax() == 0  # at the small end
    with pytest.raises(ValueError, match="unknown precision 'half': choose float32 or float64"):
        noise_table(precision="half")


def test_quantiles_equal_scipy_and_closed_forms():
    share = np.linspace(0, 1, 101)
    for p in share:
        assert quantile(p, 1, 1) == pytest.approx(p, rel=1e-12)
        assert quantile(p, 0.5, 0.5) == pytest.approx(math.sin(math.pi * p / 2) ** 2, rel=1e-12)
        assert quantile(p, 2.5, 1) == pytest.approx(p ** (1 / 2.5), rel=1e-12)
        assert quantile(p, 1, 3) == pytest.approx(-math.expm1(math.log1p(-p) / 3) if p < 1 else 1, rel=1e-12)
    for a, b in [(0.6, 0.6), (0.5, 0.7), (0.1, 0.1), (0.3, 0.9), (5, 2)]:
        assert np.allclose(
            [quantile(p, a, b) for p in [*share, 1e-9, 1 - 1e-9]],
            stats.beta.ppf([*share, 1e-9, 1 - 1e-9], a, b),
            rtol=1e-12,
            atol=0,
        )
    with pytest.raises(ValueError, match="quantile of 1.5"):
        quantile(1.5, 0.6, 0.6)


# Faults of the references, and what is done here instead


def test_diffusers_trailing_has_a_step_too_many():
    """A range of floats with steps of 1000 / n can reach one value further; it becomes time -1."""
    faulty = []
    for steps in range(1, T + 1):
        times = np.round(np.arange(T, 0, -T / steps)) - 1
        assert published.trailing(steps) == list(times)
        assert schedules.trailing(steps) == list(times[:steps])
        if len(times) > steps:
            faulty.append(steps)
    assert len(faulty) == 62 and faulty[:5] == [61, 103, 121, 122, 201]
    assert theirs("EulerDiscreteScheduler", 61, timestep_spacing="trailing")[0][-1] == -1


def test_diffusers_one_step_linspace_begins_at_the_clean_end():
    assert theirs("EulerDiscreteScheduler", 1, timestep_spacing="linspace")[0] == [0]
    assert schedules.linspace(1) == [999]


def test_diffusers_leading_with_a_thousand_steps_leaves_the_table():
    assert theirs("DDIMScheduler", 1000, timestep_spacing="leading")[0][0] == 1000  # times are 0 .. 999
    assert schedules.leading(1000)[0] == 999


def test_diffusers_truncates_exponential_times():
    """For 10 steps of DPM++: 998 at the first level, where 999 was trained."""
    expected, _ = theirs("DPMSolverMultistepScheduler", 10, use_exponential_sigmas=True)
    assert list(expected) == [998, 874, 723, 538, 329, 152, 52, 14, 2, 0]
    assert list(published.choose_range(SD, "exponential", 10, DPM)[1].values()) == list(expected)
    assert list(choose(SD, "exponential", 10, DPM)[1].values()) == [999, 875, 724, 538, 330, 153, 52, 14, 3, 0]


def test_diffusers_last_step_stands_still_where_it_ends_at_sigma_min():
    for law in ("karras", "exponential"):
        _, sigmas = theirs("DEISMultistepScheduler", 10, **{f"use_{law}_sigmas": True})
        assert sigmas[-2] == sigmas[-1]
        ours, _ = choose(SD, law, 10, LOW)
        assert ours[-2] > 1.5 * ours[-1]
        assert np.allclose(ours[:-1], getattr(schedules, law)(SD.sigma_min, SD.sigma_max, 11)[:-1])


def test_karras_means_two_ranges():
    """SDXL's published settings say leading: with them its Euler and its DPM++ begin at different levels."""
    assert round(choose(SD, "karras:leading", 10)[0][0], 2) == 8.39
    assert round(choose(SD, "karras", 10)[0][0], 2) == 14.61


def test_ays_means_two_lists():
    """A1111 spreads the eleven nodes over the steps and appends 0, so ten steps are not the ten that were optimised."""
    a1111 = tables.log_linear(tables.AYS_SDXL, 10)
    assert a1111[-1] == tables.AYS_SDXL[-1] and a1111[1] == pytest.approx(5.97, abs=0.01)
    assert choose(SD, "ays_sdxl", 10)[0][:-1] == list(tables.AYS_SDXL[:-1])


def test_comfyui_ddim_uniform_has_steps_too_many():
    assert len(published.ddim_uniform(30)) == 31 and len(published.ddim_uniform(600)) == 999
    stride = T // 30
    assert published.ddim_uniform(30) == list(range(1, T, stride))[::-1]
    assert schedules.ddim_uniform(30) == published.ddim_uniform(30)[1:]


def test_comfyui_beta_loses_steps():
    """Times that round to the same one are dropped there: 200 steps become 195."""
    rounded = np.rint(stats.beta.ppf(1 - np.linspace(0, 1, 200, endpoint=False), 0.6, 0.6) * 999)
    assert len(set(rounded)) < 200
    assert len(set(schedules.beta_times(200))) == 200


def test_comfyui_laplace_repeats_its_ends():
    x = np.linspace(0, 1, 20)
    expected = np.exp(-0.5 * np.sign(0.5 - x) * np.log(1 - 2 * np.abs(0.5 - x) + 1e-5)).clip(SD.sigma_min, SD.sigma_max)
    assert np.allclose(published.laplace_clamped(SD.sigma_min, SD.sigma_max, 20), expected, rtol=1e-12)
    many = published.laplace_clamped(SD.sigma_min, SD.sigma_max, 1000)
    assert many[0] == many[1]
    ours = schedules.laplace(SD.sigma_min, SD.sigma_max, 1000)
    shares = stats.laplace(scale=0.5).cdf(np.log(ours))
    assert np.allclose(np.diff(shares), np.diff(shares)[0], rtol=1e-6)  # equal shares of the distribution


# Parts


def test_image_to_image_means_three_starts():
    sigmas, _ = choose(SD, "karras", 20)
    assert cut.start_at_strength(sigmas, 0.5) == sigmas[10:]
    assert cut.start_at_strength(sigmas, 1.0) == sigmas
    assert len(cut.start_at_strength(choose(SD, "karras", 50)[0], 0.58)) - 1 == 28  # int(28.999...)
    assert cut.start_at_strength_a1111(sigmas, 0.5) == sigmas[9:]
    assert len(cut.start_at_strength_a1111(sigmas, 1.0)) - 1 == 20
    comfy = cut.start_at_strength_comfy(lambda n: choose(SD, "karras", n)[0], 20, 0.5)
    assert len(comfy) - 1 == 20 and comfy == choose(SD, "karras", 40)[0][20:]
    with pytest.raises(ValueError, match="strength 0.01 of 20 steps: leaves none; choose at least 0.05"):
        cut.start_at_strength(sigmas, 0.01)


def test_base_and_refiner_share_the_level_of_the_handover():
    sigmas, times = choose(SD, "leading", 40)
    base, refiner = cut.split_at_time(sigmas, times, 200)
    assert len(base) - 1 == 32 and base[-1] == refiner[0] and base + refiner[1:] == sigmas
    sigmas, times = choose(SD, "karras", 40)
    base, refiner = cut.split_at_time(sigmas, times, 200)
    assert (len(base) - 1, len(refiner) - 1) == (25, 15)  # a cut in time, not in steps
    assert cut.split(sigmas, 32)[1] == sigmas[32:]
    sigmas, times = choose(SD, "trailing", 20)
    assert times[sigmas[16]] == 199 and len(cut.split_at_time(sigmas, times, 199)[0]) - 1 == 17  # "199 or later"


def test_discarding_the_next_to_last_level():
    sigmas, _ = choose(SD, "karras", 11)
    assert cut.discard_next_to_last(sigmas) == [*sigmas[:10], 0.0]


def test_start_scale_is_that_of_diffusers():
    for schedule in ("leading", "linspace", "trailing"):
        scheduler = diffusers.EulerDiscreteScheduler(
            **BETAS, timestep_spacing=schedule, steps_offset=1, use_karras_sigmas=True
        )
        scheduler.set_timesteps(10)
        name = f"karras:{schedule}"
        assert start_std(choose(SD, name, 10)[0][0], name, Convention(unit_variance=False)) == pytest.approx(
            float(scheduler.init_noise_sigma)
        )


def test_bad_names_and_numbers_are_refused():
    for wrong in ("caras", "karras:caras", "leading:karras", "karras:", "ays_sdxl:leading"):
        with pytest.raises(ValueError, match=f"^unknown schedule '{wrong}': choose one of leading, linspace"):
            choose(SD, wrong, 10)
    for wrong in ("leading", "ays_sd15", "karras:leading"):
        with pytest.raises(ValueError, match=f"^schedule '{wrong}' needs trained time steps .* choose karras, expon"):
            choose(EDM(), wrong, 10)
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=f"^{steps} steps: choose 1 to 1000, the number of trained"):
            choose(SD, "karras", steps)
    with pytest.raises(ValueError, match="^0 steps: choose at least 1$"):
        choose(EDM(), "karras", 0)
    with pytest.raises(ValueError, match="^unknown beta law 'quadratic'"):
        noise_table(law="quadratic")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: choose(SD, [10, 5, 5, 0], 3), r"schedule \[10.0, 5.0, 5.0, 0.0\]: noise levels must decrease"),
        (lambda: choose(SD, [1, 2, 0], 2), "must decrease in every step"),
        (lambda: choose(SD, [], 1), "must decrease"),
        (lambda: choose(SD, [2, math.nan, 0], 2), "must decrease"),
        (lambda: choose(SD, [2, 1, -1], 2), "not below 0"),
        (lambda: cut.split([2, 1, 0], 3), "cannot hand over after 3 steps of 2"),
        (lambda: cut.split([2, 1, 0], -1), "cannot hand over after -1 steps of 2"),
        (lambda: cut.start_at_strength_comfy(lambda n: [*range(n, -1, -1)], 4, 0), "strength 0: choose more"),
    ],
)
def test_bad_lists_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_between_trained_times_there_are_two_laws():
    """diffusers draws straight lines in sigma, k-diffusion in log sigma; only the latter is inverted by t()."""
    middle = SD.log_linear_sigma(100.5)
    assert middle == pytest.approx(math.sqrt(SD.sigmas[100] * SD.sigmas[101]), rel=1e-14)
    assert SD.t(middle) == pytest.approx(100.5, abs=1e-9)
    assert SD.sigma(100.5) == pytest.approx((SD.sigmas[100] + SD.sigmas[101]) / 2, rel=1e-14)
    assert SD.log_linear_sigma(999) == pytest.approx(SD.sigma_max) and SD.sigma(0) == SD.sigma_min
    sigmas = [5.0, 1.0, 0.0]
    assert with_times(SD, sigmas, DPM)[1] == {5.0: round(SD.t(5.0)), 1.0: round(SD.t(1.0))}
