"""Settings of all tests: no network, few threads, programs run as a user runs them."""

import ast
import os
import runpy
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

# Where tests run in the background, these may be ignored, and then in every program that a test starts and stops.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy multiplies small blocks in Triton's interpreter

import pytest  # noqa: E402
import torch  # noqa: E402

from support.paths import NO_NETWORK, ROOT  # noqa: E402

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU; triton reads it when it is first imported

runpy.run_path(str(NO_NETWORK / "sitecustomize.py"))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PYTHONPATH"] = os.pathsep.join([str(NO_NETWORK), str(ROOT)])  # for the programs that tests start
# One thread for tiny tensors, since `make test` runs two processes. THREADS=4 shows that no test depends on it.
torch.set_num_threads(int(os.environ.get("THREADS", "1")))

ORACLES = {"accelerate", "diffusers", "open_clip", "peft", "transformers"}  # slow to import, and to run
SLOW = {  # the files without oracles that take more than 15 s, measured on one core
    "tests/ldm/kernels/test_kernels.py",
    "tests/ldm/kernels/test_kernels_compiled.py",
    "tests/ldm/kernels/test_kernels_networks.py",
    "tests/test_docs.py",
    "tests/test_faults.py",
    "tests/test_wheel.py",
    "tests/weights/test_bombs.py",
    "tests/weights/test_changing_files.py",
    "tests/weights/test_fuzz.py",
    "tests/weights/test_hub_lies.py",
}


def pytest_ignore_collect(collection_path: Path, config):
    """With `-m pure`, other files are not even imported: that would take longer than the tests."""
    if config.option.markexpr == "pure" and collection_path.match("test_*.py") and not is_pure(collection_path):
        return True
    return None


def pytest_collection_modifyitems(items):
    for item in items:
        if is_pure(item.path) and "script" not in item.fixturenames:
            item.add_marker("pure")
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "full" in item.keywords and "full" not in (item.config.option.markexpr or ""):
            item.add_marker(pytest.mark.skip(reason="networks of published size: run by hand with -m full"))


def is_pure(path: Path) -> bool:
    """Whether the tests of a file are quick, test no program and need no other library's networks."""
    name = path.relative_to(ROOT).as_posix()
    return name not in SLOW and not name.startswith("tests/scripts/") and not uses_oracle(path)


@cache
def uses_oracle(path: Path) -> bool:
    """Whether a file imports an oracle anywhere in it, itself or through the helpers in tests/support."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "support":
            names = [f"support.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            helper = ROOT / "tests" / (name.replace(".", "/") + ".py")
            if name.split(".")[0] in ORACLES:
                return True
            if name.startswith("support.") and helper.is_file() and uses_oracle(helper):
                return True
    return False


@pytest.fixture
def script():
    """Run scripts/NAME with arguments: script("txt2img.py", "--prompt", "a fox") -> CompletedProcess."""

    def run(name: str, *args, cwd: Path = ROOT) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "scripts" / name), *map(str, args)]
        return subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=1800
        )  # of a program that hangs, on however busy a machine

    return run
