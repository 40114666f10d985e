"""The wheel holds all that the checkout has to offer, and its command `ldm` works far from the checkout."""

import os
import signal
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import pytest
from PIL import Image

from ldm.version import DISTRIBUTION, version
from support.paths import NO_NETWORK, ROOT

PACKAGES = {"ldm": "ldm", "samplers": "samplers", "weights": "weights", "scripts": "ldm_scripts"}  # folder -> package
BUILD = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing of an earlier build is in it and the checkout stays clean."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        copy(ROOT / name, source)
    for folder in PACKAGES:
        copytree(ROOT / folder, source / folder, ignore=ignore_patterns("__pycache__"))
    for folder in ("ldm", "ldm/kernels"):  # what a checkout that was used holds
        (source / folder / "__pycache__").mkdir()
        (source / folder / "__pycache__/old.pyc").touch()
    target = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", *BUILD, "--wheel-dir", target, source)
    (path,) = target.iterdir()
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A new environment with the wheel in it. It sees what the tests' environment has installed, but not the checkout:
    of the folder that a .pth file names, the .pth files of editable installs are not read."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", *BUILD, wheel)
    (packages,) = folder.glob("lib/python*/site-packages")
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "of_the_tests.pth").write_text("".join(f"{path}\n" for path in installed))
    return folder


def run(*command, cwd: Path = ROOT, check: bool = True, **variables) -> subprocess.CompletedProcess:
    """Run a program without the checkout on its path."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(NO_NETWORK)} | variables,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def test_the_wheel_holds_every_file_of_its_folders(wheel):
    """A room, a manifest or a page that is added to the tree is in the next wheel, with no list to keep."""
    expected = set()
    for folder, package in PACKAGES.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                expected.add(f"{package}/{path.relative_to(ROOT / folder).as_posix()}")
    names = zipfile.ZipFile(wheel).namelist()
    held = {name for name in names if ".dist-info/" not in name}
    assert held == expected
    assert {"ldm/py.typed", "samplers/py.typed", "weights/py.typed"} <= held
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_command_works_from_the_wheel(environment, tmp_path):
    ldm = environment / "bin/ldm"
    code = "import ldm, importlib.util; print(ldm.__file__, importlib.util.find_spec('weights').origin, sep='\\n')"
    for path in run(environment / "bin/python", "-c", code, cwd=tmp_path).stdout.splitlines():
        assert Path(path).is_relative_to(environment)

    assert run(ldm, "--version", cwd=tmp_path).stdout == f"ldm {version()}\n"
    overview = run(ldm, "--help", cwd=tmp_path).stdout
    assert "  draw      Draw pictures from text.\n" in overview and "  inspect   " in overview

    run(ldm, "draw", "--prompt", "a red apple", "--steps", 2, "--out", "x.png", cwd=tmp_path)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (64, 64)
        assert f'"ldm": "{version()}"' in picture.text["ldm"]

    miniature = next(environment.glob("lib/python*/site-packages/weights/miniature"))
    assert "unet" in run(ldm, "inspect", miniature, "--quick", cwd=tmp_path).stdout
    assert "text_encoder" in run(ldm, "compare", "--parts", "text_encoder", cwd=tmp_path).stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.png"]


def test_what_the_command_refuses_is_told_in_one_line(environment, tmp_path):
    unknown = run(environment / "bin/ldm", "drow", cwd=tmp_path, check=False)
    assert unknown.returncode == 2
    assert unknown.stderr == "error: unknown command 'drow': choose one of draw, convert, inspect, compare, lab\n"

    # its messages name the command that was typed, not the file behind it
    flags = run(environment / "bin/ldm", "draw", "--prompt", "x", "--stpes", 2, cwd=tmp_path, check=False)
    assert flags.returncode == 2 and flags.stderr.splitlines()[-1].startswith("ldm draw: error: ")


def test_a_missing_extra_is_told_in_one_line(environment, tmp_path):
    (tmp_path / "diffusers.py").write_text("raise ModuleNotFoundError('no diffusers', name='diffusers')")
    path = os.pathsep.join([str(NO_NETWORK), str(tmp_path)])
    refused = run(environment / "bin/ldm", "compare", cwd=tmp_path, check=False, PYTHONPATH=path)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert f"needs the package diffusers, which is not installed: pip install '{DISTRIBUTION}[test]'" in refused.stderr


def test_ctrl_c_during_imports_is_told_in_one_line(environment, tmp_path):
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(100)")
    process = subprocess.Popen(
        [environment / "bin/ldm", "draw", "--prompt", "x"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert (process.returncode, stderr) == (130, "stopped\n")
