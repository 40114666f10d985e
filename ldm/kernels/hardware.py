"""What the kernels run on, and what they refuse: one line that names the argument, never a silent slow path."""

import functools
import math

import torch
import triton
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
INTERPRETED = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1: kernels run on the CPU, slowly, one step at a time
FUSED = {"enable_fp_fusion": True}  # a*b + c rounds once; Triton 3.10 will no longer do so unasked


@functools.cache
def gpu(device: torch.device) -> tuple[str, int]:
    """sm_80, sm_90, gfx942, ...: the key of the tables of tiles; and how many programs run side by side at least, the
    streaming multiprocessors: 132 on an H100 and H200. The interpreter stands in for a small sm_90."""
    if INTERPRETED:
        return "sm_90", 4
    properties = torch.cuda.get_device_properties(device)
    name = properties.gcnArchName.split(":")[0] if torch.version.hip else f"sm_{properties.major}{properties.minor}"
    return name, properties.multi_processor_count


def processors(device: torch.device) -> int:
    return gpu(device)[1]


def served(architecture: str) -> bool:
    """NVIDIA's from Ampere on, which have tensor cores for bfloat16, and AMD's MI300."""
    return architecture == "gfx942" or architecture.startswith("sm_") and int(architecture[3:]) >= 80


def for_architecture(table: dict, device: torch.device):
    """The row of a table {"sm_80": ..., "sm_90": ...} for this device; an unlisted one gets the sm_80 tiles."""
    return table.get(gpu(device)[0], table["sm_80"])


def alignment(*tensors: Tensor, width: int) -> int:
    """Rows of all tensors start at multiples of so many elements: at most 16 bytes, the widest load there is."""
    strides = [stride for tensor in tensors for stride in tensor.stride()[:-1]]
    return math.gcd(16 // tensors[0].dtype.itemsize, width, *strides)


def require(condition: bool, operation: str, problem: str) -> None:
    if not condition:
        raise ValueError(f"triton {operation}: {problem}")


def require_affine(operation: str, weight: Tensor | None, bias: Tensor | None) -> None:
    for name, parameter in dict(weight=weight, bias=bias).items():
        require(parameter is not None, operation, f"the norm has no {name}; only norms with weight and bias are served")


def check(operation: str, **tensors: Tensor | None) -> None:
    """Raise ValueError unless all of the tensors can be read by a kernel: right device, right type, not empty."""
    first = next(tensor for tensor in tensors.values() if tensor is not None)
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        require(
            tensor.device.type != "cpu" or INTERPRETED,
            operation,
            f"{name} is on the CPU; move it to a GPU, or set TRITON_INTERPRET=1 before Python starts",
        )
        require(tensor.device == first.device, operation, f"{name} is on {tensor.device}, not on {first.device}")
        require(
            served(gpu(tensor.device)[0]),
            operation,
            f"{gpu(tensor.device)[0]} is not served; sm_80 and newer, gfx942 are",
        )
        require(tensor.dtype in DTYPES, operation, f"{name} is {tensor.dtype}, not float16, bfloat16 or float32")
        require(tensor.numel() > 0, operation, f"{name} is empty, shape {tuple(tensor.shape)}")
