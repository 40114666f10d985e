"""Settings of all tests: no network, few threads, programs run as a user runs them."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy multiplies small blocks in Triton's interpreter

import pytest  # noqa: E402
import torch  # noqa: E402

from support.paths import NO_NETWORK, ROOT  # noqa: E402

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU; triton reads it when it is first imported

runpy.run_path(str(NO_NETWORK / "sitecustomize.py"))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PYTHONPATH"] = os.pathsep.join([str(NO_NETWORK), str(ROOT)])  # for the programs that tests start
torch.set_num_threads(1)  # tiny tensors; `make test` runs two processes


def pytest_collection_modifyitems(items):
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "full" in item.keywords and "full" not in (item.config.option.markexpr or ""):
            item.add_marker(pytest.mark.skip(reason="networks of published size: run by hand with -m full"))


@pytest.fixture
def script():
    """Run scripts/NAME with arguments: script("txt2img.py", "--prompt", "a fox") -> CompletedProcess."""

    def run(name: str, *args, cwd: Path = ROOT) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "scripts" / name), *map(str, args)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)

    return run
