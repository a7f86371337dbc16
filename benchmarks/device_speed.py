"""The speed of a device in matrix products, and its time by kernel."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from serve_app.pipeline.device import synchronise_stream


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes on an idle device, including its queued work."""
    synchronise_stream(device)
    started = time.perf_counter()
    call()
    synchronise_stream(device)
    return time.perf_counter() - started


def matmul_flops(device: torch.device, lasting_s: float = 0.0) -> float:
    """Floating-point operations per second of the fastest of some square matrix products of random data.

    Each size counts with the median of ten products. With `lasting_s`, the largest size counts with the mean over that
    many seconds, in which a GPU reaches the clock that its power limit allows.
    """
    sizes, dtype = ((4096, 8192, 16384), torch.bfloat16) if device.type == "cuda" else ((512, 1024), torch.float32)
    best = 0.0
    for size in sizes[-1:] if lasting_s else sizes:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        times: list[float] = []
        while len(times) < 10 or sum(times) < lasting_s:
            times.append(seconds(partial(torch.mm, a, b), device))
        best = max(best, 2 * size**3 / (statistics.mean(times) if lasting_s else statistics.median(times)))
    return best


def device_time(call: Callable[[], object], most: int = 25) -> str:
    """A table of the device's time in a call, by kernel, the longest first."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
    events = [event for event in profiler.key_averages() if event.device_type != DeviceType.CPU]
    whole = sum(event.self_device_time_total for event in events)
    rows = ["| kernel | times | ms | share |", "|---|---|---|---|"]
    for event in sorted(events, key=lambda event: -event.self_device_time_total)[:most]:
        took = event.self_device_time_total
        rows.append(f"| {event.key[:110]} | {event.count} | {took / 1e3:.1f} | {took / whole:.1%} |")
    return "\n".join(rows)
