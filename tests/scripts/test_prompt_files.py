"""scripts/drawing/prompt_files.py: prompts with settings of their own, in the forms that people and programs write."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from drawing.prompt_files import read_rows
from support.paths import ROOT

TWO = [{"prompt": "a red apple", "seed": 7}, {"prompt": "a fox, flat style", "steps": 9, "guidance": 2.5}]


@pytest.fixture
def rows(tmp_path):
    """The values of the rows of a file that holds this text."""

    def read(name: str, content: str | bytes) -> list[dict]:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return [row.values for row in read_rows(path)]

    return read


@pytest.mark.parametrize(
    "name, content",
    [
        ("p.csv", 'prompt,seed,steps,guidance\na red apple,7,,\n"a fox, flat style",,9,2.5\n'),
        ("p.CSV", '\ufeffPrompt, SEED ,Steps,guidance\r\n\r\na red apple,7\r\n,,,\r\n"a fox, flat style",,9,2.5\r\n'),
        ("p.csv", 'prompt;seed;steps;guidance\na red apple;7.0;;\n"a fox, flat style";;9;2.5\n'),
        ("p.tsv", "prompt\tseed\tsteps\tguidance\na red apple\t7\t\t\na fox, flat style\t\t9\t2.5\n"),
        ("p.csv", "prompt\tseed\tsteps\tguidance\na red apple\t7\na fox, flat style\t\t9\t2.5".encode("utf-16")),
        ("p.json", json.dumps(TWO)),
        ("p.json", json.dumps({"prompts": [TWO[0] | {"steps": None}, TWO[1] | {"steps": "9", "guidance": "2.5"}]})),
        ("p.jsonl", "\n".join(map(json.dumps, TWO)) + "\n\n"),
        ("p.ndjson", "\r\n".join(map(json.dumps, TWO))),
    ],
)
def test_the_same_rows_in_every_form(rows, name, content):
    assert rows(name, content) == TWO


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a fox\n\n an owl \r\n", ["a fox", "an owl"]),
        (json.dumps(["a fox", {"prompt": "an owl"}]), ["a fox", "an owl"]),
        ('{"prompt": "a fox"}\n{"prompt": "an owl"}', ["a fox", "an owl"]),
        ("prompt,seed\na fox,1\nan owl,2", ["a fox", "an owl"]),
        ("[a|b] fox, {an owl}\nprompt, as a word", ["[a|b] fox, {an owl}", "prompt, as a word"]),
        ("a prompt, of words\nan owl", ["a prompt, of words", "an owl"]),
    ],
)
def test_stdin_is_read_by_what_it_holds(monkeypatch, text, expected):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert [row.values["prompt"] for row in read_rows(Path("-"))] == expected


def test_options_in_every_form(rows):
    wanted = {"eta": 0.5, "s_noise": 0.9}
    assert rows("p.csv", "prompt,option.eta,option.s_noise\nx,0.5,0.9")[0]["options"] == wanted
    for text in ("eta=0.5 s_noise=0.9", "eta=0.5;s_noise=0.9"):
        assert rows("p.csv", f"prompt,options\nx,{text}")[0]["options"] == wanted
    for value in (wanted, ["eta=0.5", "s_noise=0.9"], "eta=0.5, s_noise=0.9"):
        assert rows("p.json", json.dumps([{"prompt": "x", "options": value}]))[0]["options"] == wanted
    assert rows("p.json", '[{"prompt": "x", "option.pece": true}]')[0]["options"] == {"pece": True}


def test_a_seed_may_be_random_and_large(rows):
    first, second, third = rows("p.csv", f"prompt,seed\nx,-1\nx,random\nx,{2**64 - 1}")
    assert 0 <= first["seed"] < 2**32 and first["seed"] != second["seed"]  # equal once in 4 * 10^9 runs
    assert third["seed"] == 2**64 - 1  # which a float could not hold


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("p.csv", "prompt,colour\nx,red", "row 1: unknown column 'colour'"),
        ("p.csv", "prompt,step\nx,3", "row 1: unknown column 'step': perhaps 'steps'"),
        ("p.csv", "prompt,seed,Seed\nx,1,2", "row 1: the column 'seed' is there twice"),
        ("p.csv", "a red apple\nan owl", "row 1: unknown column 'a red apple'"),
        ("p.csv", "seed,steps\n1,2", "row 1: no column is called 'prompt'"),
        ("p.csv", "prompt,seed\n\na fox, flat style,1", "row 3: 3 cells for 2 columns, the first too many is '1'"),
        ("p.csv", "prompt,steps\nx,\ny,many", "row 3: column 'steps': 'many': give a number"),
        ("p.csv", "prompt,steps\nx,2.5", "row 2: column 'steps': '2.5': give a whole number"),
        ("p.csv", "prompt,count\nx,0", "row 2: column 'count': '0': give a whole number from 1"),
        ("p.csv", "prompt,seed\nx,-2", "row 2: column 'seed': '-2': seed -2: must be between 0 and"),
        ("p.csv", "prompt,guidance\nx,nan", "row 2: column 'guidance': 'nan': give a number"),
        ("p.csv", "prompt,option.eta\n,0.5", "row 2: column 'prompt' is empty"),
        ("p.csv", "prompt,options\nx,eta", "row 2: column 'options': 'eta': give options as eta=0.5"),
        ("p.csv", 'prompt,seed\n"x,1\n', "cannot be read as CSV"),
        ("p.csv", "prompt\n", "holds no prompts"),
        ("p.json", "[]", "holds no prompts"),
        ("p.json", "[1]", "row 1: 1: give a text, or an object"),
        ("p.json", '[{"prompt": "x"}, {"prompt": ["y"]}]', "row 2: column 'prompt': ['y']: give a text"),
        ("p.json", '[{"prompt": "x", "steps": true}]', "row 1: column 'steps': True: give a number"),
        ("p.json", '[{"prompt": "x", "model": "y"}]', "row 1: unknown column 'model'"),
        ("p.json", '[{"prompt": "x"', "cannot be read as JSON"),
        ("p.json", "[" * 100_000, "cannot be read as JSON"),
        ("p.jsonl", '{"prompt": "x"}\n{"prompt"}', "row 2: cannot be read as JSON"),
        ("p.jsonl", '{"prompt": "x", "seed": 1e400}', "row 1: column 'seed': inf"),
        ("p.json", '[{"prompt": "x", "steps": ' + "1" * 5000 + "}]", "it holds a number of thousands of digits"),
        ("p.json", '[{"prompt": "\\ud800"}]', "row 1: column 'prompt': '\\ud800': holds half a character"),
        ("p.txt", "x\0y", "cannot be read as text: it holds zero bytes"),
        ("p.txt", b"caf\xe9", "cannot be read as text"),
    ],
)
def test_what_is_wrong_is_one_line_with_row_and_column(rows, capsys, name, content, words):
    with pytest.raises(SystemExit) as end:
        rows(name, content)
    told = capsys.readouterr().err
    assert end.value.code == 2 and told.startswith("error: ") and told.count("\n") == 1 and len(told) < 800
    assert words in told and f"{name}: " in told


def test_stdin_may_be_closed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SystemExit):
        read_rows(Path("-"))
    assert capsys.readouterr().err == "error: stdin: cannot be read as text: it is closed\n"


def test_rows_are_drawn_together_and_numbered_in_their_order(tmp_path):
    """As a user runs it: mixed settings from stdin, the report on stdout, all else on stderr."""
    table = "prompt,seed,steps,option.eta,count\na red apple,7,2,,\nan owl,5,3,0.5,2\n\na fox,,,,\n"
    command = [sys.executable, str(ROOT / "scripts/txt2img.py"), "--prompts", "-", "--sampler", "DDIM", "--schedule",
               "SGM Uniform", "--steps", "2", "--seed", "3", "--json", "--preview", "--out", str(tmp_path)]  # fmt: skip
    run = subprocess.run(command, input=table, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    names = [f"{number:05d}-{seed}.png" for number, seed in enumerate((7, 5, 6, 3))]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "preview.png"]
    assert [Path(picture["path"]).name for picture in report["pictures"]] == names
    assert run.stderr.splitlines() == [str(tmp_path / name) for name in names]
    expected = [("a red apple", 2, {}), ("an owl", 3, {"eta": 0.5}), ("an owl", 3, {"eta": 0.5}), ("a fox", 2, {})]
    for picture, (prompt, steps, options) in zip(report["pictures"], expected):
        with Image.open(picture["path"]) as image:
            record = json.loads(image.text["ldm"])
        assert record == picture["settings"] and record["schedule"] == "sgm_uniform"
        assert (record["prompt"], record["steps"], record["options"]) == (prompt, steps, options)
