"""What decides a picture, from flags in the words of any program: scripts/settings.py, devices.py, prompt_syntax.py and
known_words.py."""

import argparse

import pytest
import torch

import weights
from common import text_sources
from devices import available, check_device
from drawing.known_words import find_unknown, known_names, tell_unknown
from drawing.prompt_syntax import find_syntax
from ldm.config import MODELS
from samplers import SAMPLERS
from samplers.schedules import SCHEDULES
from settings import choose_settings, complete, parse_seed, split_at_colon, split_sampler


def choose(**given):
    """The settings of a run with these flags and no others."""
    flags = {"device": "cpu", "option": None, "sampler": None, "again": None}
    return choose_settings(argparse.Namespace(**flags | given), {})


@pytest.mark.parametrize(
    "name, sampler, schedule",
    [
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("dpm++ 2m sde karras", "dpmpp_2m_sde", "karras"),
        ("DPM++ 2M SDE Exponential", "dpmpp_2m_sde", "exponential"),
        ("DPM++ 3M SDE SGM Uniform", "dpmpp_3m_sde", "sgm_uniform"),
        ("DPM2 a Karras", "dpm_2_ancestral", "karras"),
        ("LMS Karras", "lms", "karras"),
        ("k_dpmpp_2m_ka", "dpmpp_2m", "karras"),
        ("dpmpp_2m_k", "dpmpp_2m", "karras"),
        ("Euler a", "euler_ancestral", None),
        ("DPMSolverMultistepScheduler", "dpmpp_2m", None),
        ("DDIM CFG++", "euler_cfg_pp", None),
        ("Restart", "restart", None),
    ],
)
def test_a_sampler_with_a_schedule_in_its_name(name, sampler, schedule):
    assert split_sampler(name) == (sampler, schedule)
    chosen = choose(sampler=name)
    assert (chosen["sampler"], chosen["schedule"]) == (sampler, schedule)


def test_every_sampler_takes_every_schedule_behind_its_name():
    for sampler in SAMPLERS:
        assert split_sampler(sampler) == (sampler, None)
        label = SAMPLERS[sampler].label or sampler
        assert split_sampler(label) == (sampler, None)
    for schedule in SCHEDULES:
        assert split_sampler(f"DPM++ 2M {schedule}") == ("dpmpp_2m", schedule)


def test_two_schedules_are_one_too_many(capsys):
    assert choose(sampler="DPM++ 2M Karras", schedule="KARRAS")["schedule"] == "karras"
    with pytest.raises(SystemExit):
        choose(sampler="DPM++ 2M Karras", schedule="Simple")
    told = capsys.readouterr().err
    assert told == "error: sampler 'DPM++ 2M Karras' names the schedule karras: leave out --schedule 'Simple'\n"


def test_a_sampler_is_no_schedule(capsys):
    for name in ("EulerDiscreteScheduler", "DPM++ 2M Karras"):
        with pytest.raises(SystemExit):
            choose(schedule=name)
        assert capsys.readouterr().err == f"error: schedule {name!r} is a sampler: give it as --sampler\n"


def test_a_schedule_is_no_sampler(capsys):
    for name in ("karras", "SGM Uniform"):
        with pytest.raises(SystemExit):
            choose(sampler=name)
        assert capsys.readouterr().err == f"error: sampler {name!r} is a schedule: give it as --schedule\n"


def test_a_tower_needs_a_source(capsys):
    with pytest.raises(SystemExit):
        text_sources(["text_encoder="])
    told = capsys.readouterr().err
    assert told == "error: --text text_encoder=: names no source: give text_encoder=SOURCE\n"


def test_the_colon_of_an_address_is_none_of_a_strength():
    page = "https://huggingface.co/owner/name"
    assert split_at_colon(page) == (page, None) and split_at_colon(f"{page}:0.5") == (page, "0.5")


def test_automatic_and_align_your_steps_depend_on_sampler_and_model():
    assert choose(sampler="DPM++ 2M SDE", schedule="Automatic")["schedule"] == "exponential"
    assert choose(sampler="dpmpp_2m", schedule="automatic")["schedule"] == "karras"
    for family, wanted in (("sd15", "ays_sd15"), ("sdxl", "ays_sdxl")):
        model = argparse.Namespace(facts=MODELS[family])
        chosen = choose(schedule="Align Your Steps")
        complete(chosen, model)
        assert chosen["schedule"] == wanted
        chosen = choose(sampler="euler", schedule="Automatic")
        complete(chosen, model)
        assert chosen["schedule"] == MODELS[family].schedule  # the model's own


def test_minus_one_draws_a_seed():
    drawn = {parse_seed(text) for text in ("-1", "random", "RANDOM", " -1 ")}
    assert len(drawn) > 1 and all(0 <= seed < 2**32 for seed in drawn)
    assert parse_seed(str(2**64 - 1)) == 2**64 - 1
    for wrong in ("-2", str(2**64), "9" * 5000, "1.5", "", "one"):
        with pytest.raises(ValueError) as error:
            parse_seed(wrong)
        assert len(str(error.value)) < 200 and "random" in str(error.value)


def test_the_device_is_what_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    assert available() == ["cpu"] and check_device("auto") == "cpu" and check_device("CPU") == "cpu"
    assert check_device("cpu:00") == "cpu:0"
    for wrong in ("cuda", "cuda:7", "mps", "gpu", "toaster", "", "meta", "cpu:3", "cuda:", "x" * 10_000, "cpu:-1"):
        with pytest.raises(ValueError, match="use --device cpu$") as error:
            check_device(wrong)
        assert len(str(error.value)) < 160
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert available() == ["cuda", "cpu"] and check_device("cuda:1") == "cuda:1" and check_device("auto") == "cuda"
    with pytest.raises(ValueError, match="'cuda:7': this machine has cuda:0 to cuda:1: use --device cuda or cpu$"):
        check_device("cuda:7")


SYNTAX = {
    "(red:1.3) apple": "'(red:1.3)'",
    "a ((red)) apple": "'((red))'",
    "a [red] apple": "'[red]'",
    "a [red:blue:0.5] apple": "'[red:blue:0.5]'",
    "a [red|blue] apple": "'[red|blue]'",
    "a fox AND an owl": "'AND'",
    "a fox BREAK an owl": "'BREAK'",
    "a fox <lora:style:0.8>": "--lora",
    "a fox <lyco:style:1>": "--lora",
    "embedding:easynegative": "--embedding",
    "a __color__ fox": "--prompts",
    "a {red|blue} fox": "--prompts",
    "a red++ fox": "'ed++'",
    "(a fox)1.3 in snow": "emphasis",
    r"saber \(series\)": "backslash",
    "{{masterpiece}}": "emphasis",
}


@pytest.mark.parametrize("prompt", SYNTAX)
def test_what_means_something_elsewhere_is_told(prompt):
    (message,) = find_syntax([prompt, prompt])  # once, not for each prompt
    assert SYNTAX[prompt] in message and "is read literally" in message


@pytest.mark.parametrize(
    "prompt",
    ["a fox (a red one)", "(word)", "a fox: an owl", "A FOX AND AN OWL", "a fox and an owl", "C++", "snake_case",
     "a clock, 12:30", "a -- b", "breakfast", "BREAKFAST for one", "it's 5 < 7", "Brand New: an owl", "an owl AND", ""],
)  # fmt: skip
def test_ordinary_english_is_not_syntax(prompt):
    assert find_syntax([prompt]) == []


def test_a_long_prompt_is_searched_quickly_and_told_shortly():
    for text in ("(" * 50_000, "[" * 50_000, "a (" + " " * 50_000, "{" * 50_000, "__" * 50_000, "((a" * 50_000):
        assert all(len(message) < 300 for message in find_syntax([text]))


def test_unknown_words_come_with_the_nearest_known_ones():
    names = known_names()
    assert len(names) == 121 and "four leaf clover" in names
    for known in ("a small red apple, 3d style, on a blue background", "a cat", "X", "Jack-o-lantern, on orange"):
        assert find_unknown([known], names) == {}
    unknown = find_unknown(["a casle by the sea", "appels, foxs and a cat-toy"], names, added=["cat-toy"])
    assert unknown["appels"][:2] == ["red apple", "green apple"]
    assert "fox" in unknown["foxs"] and list(unknown) == ["casle", "by", "sea", "appels", "foxs"]
    told = tell_unknown({f"word{k}": ["fox"] for k in range(9)}, names)
    assert "and 4 more words" in told and "121 names: ldm draw --words" in told


def test_other_models_have_no_list_of_words(tmp_path):
    model = weights.load(weights.MINIATURE)
    assert len(known_names(model)) == 121
    for content in (None, "{", "[]", '{"learned": 5}', '{"learned": [5]}'):
        if content is not None:
            (tmp_path / "training.json").write_text(content)
        assert known_names(argparse.Namespace(source=str(tmp_path))) == []
