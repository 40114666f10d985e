"""Schedules by other programs' names. What each name means there is in docs/schedules.md."""

import pytest

from samplers.schedules import EDM, SCHEDULES, Convention, choose, find, noise_table, start_std

SD = noise_table()
THEIRS = {
    # A1111's labels, and what its pictures and ours write as "Schedule type"
    "Karras": "karras", "Exponential": "exponential", "Polyexponential": "polyexponential", "Uniform": "normal",
    "SGM Uniform": "sgm_uniform", "SGMUniform": "sgm_uniform", "KL Optimal": "kl_optimal", "Simple": "simple",
    "Normal": "normal", "DDIM": "ddim_uniform", "Beta": "beta", "Sgm_uniform": "sgm_uniform", "Ays_sd15": "ays_sd15",
    "Karras:leading": "karras:leading", "KARRAS : Trailing": "karras:trailing", "Align Your Steps GITS": "gits",
    # ComfyUI's names and nodes
    "ddim_uniform": "ddim_uniform", "linear_quadratic": "linear_quadratic", "KarrasScheduler": "karras",
    "BetaSamplingScheduler": "beta_times", "LaplaceScheduler": "laplace", "VPScheduler": "vp",
    # diffusers' and k-diffusion's words
    "use_karras_sigmas": "karras", "use_beta_sigmas": "beta", "LCMScheduler": "lcm", "get_sigmas_vp": "vp",
    "get_sigmas_exponential": "exponential", "Trailing": "trailing",
}  # fmt: skip


@pytest.mark.parametrize("theirs", THEIRS)
def test_a_schedule_is_found_by_the_names_of_others(theirs):
    assert find(theirs) == THEIRS[theirs]
    assert choose(SD, theirs, 7) == choose(SD, THEIRS[theirs], 7)
    if not theirs.startswith("Align"):  # A capital letter, a space or a dash is no other schedule
        assert find(f" {theirs.upper()} ") == THEIRS[theirs]


@pytest.mark.parametrize("name", SCHEDULES)
def test_ours_are_found_however_they_are_spelled(name):
    for spelled in (name, name.capitalize(), name.upper(), name.replace("_", " "), name.replace("_", "-")):
        assert find(spelled) == name
        for convention in (Convention(), Convention(unit_variance=False)):
            assert start_std(14.0, spelled, convention) == start_std(14.0, name, convention)


def test_align_your_steps_is_that_of_the_model():
    assert find("Align Your Steps", sdxl=True) == "ays_sdxl" and find("AYS", sdxl=False) == "ays_sd15"
    with pytest.raises(ValueError, match="'Align Your Steps' is a list for each model: choose ays_sd15 or ays_sdxl"):
        choose(SD, "Align Your Steps", 10)


@pytest.mark.parametrize("wrong", ("bong_tangent", "", ":", "karras:", "Turbo", "x" * 100_000, "\x1b[31m"))
def test_others_are_refused_in_one_short_line(wrong):
    for levels in (SD, EDM()):
        with pytest.raises(ValueError, match="^unknown schedule '") as error:
            choose(levels, wrong, 10)
        assert len(str(error.value)) < 500 and str(error.value).isprintable()
