"""How much memory tensors take at once, counted by allocations: the same on every machine, however busy."""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_of(function: Callable[[], Any]) -> int:
    """Bytes that tensors on the CPU hold at most while the function runs, beyond those that were held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    changes = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = 0
    peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return peak
