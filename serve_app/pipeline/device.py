"""The device that an editor computes on: which one, in which dtype, and whether it still works."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from torch import Tensor

from serve_app.telemetry import tracing

logger = logging.getLogger(__name__)

# How the driver, cuBLAS and cuDNN say it; torch says the last where none of cuDNN's ways found room.
OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED", "unable to find an engine")
# This process's own, in a container.
CGROUP = Path("/sys/fs/cgroup")


@dataclass
class Stopwatch:
    """Seconds by stage. On CUDA a stage ends when what it queued on its own stream is done."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        with tracing.span(name):
            yield
            finish(self.device)
        self.seconds[name] = time.perf_counter() - started


def finish(device: torch.device) -> None:
    """Wait for what this thread has queued, and for nothing that another thread queues on another stream."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def lend(tensor: Tensor) -> Tensor:
    """`tensor`, whose memory is not given away before this thread's stream is done with it, whoever lets go of it."""
    if tensor.is_cuda:
        tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return tensor


class Aside:
    """Work on the device beside what it is doing: on CUDA in a stream of its own, on a CPU in the caller's thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @contextmanager
    def work(self) -> Iterator[None]:
        """What is queued within is complete afterwards. Who then uses its tensors elsewhere has to `lend` them."""
        with torch.cuda.stream(self._stream):
            yield
            finish(self._device)


def choose(device: str) -> torch.device:
    """The torch device for the config's `auto`, `cpu` or `cuda`. Raises RuntimeError for a cuda that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("the config says device: cuda, but torch finds no CUDA device")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def dtype_for(device: torch.device) -> torch.dtype:
    """fp32 on a CPU; bf16 on CUDA, or fp16 where the card has no bf16."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def is_alive(device: torch.device) -> bool:
    """Whether the device still computes: False once its context is dead, after an illegal access for example.

    Such a context never recovers within its process, so the process has to be replaced.
    """
    try:
        total = torch.ones(8, device=device).sum().item()
    except RuntimeError as error:
        if is_out_of_memory(error):
            return True
        logger.exception("the device %s does not answer any more", device)
        return False
    return total == 8.0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the device is what was missing, whoever wanted it: torch's allocator, a library, the driver."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, torch.OutOfMemoryError) or any(words in str(seen) for words in OUT_OF_MEMORY):
            return True
        seen = seen.__cause__
    return False


def free_memory(device: torch.device) -> int:
    """Bytes that could be allocated now: on the card, or for the CPU of the machine and of this process's container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(int(psutil.virtual_memory().available), free_in_container(CGROUP))


def free_in_container(cgroup: Path) -> int:
    """Bytes below the limit of the control group (version 2) whose files these are; a great many without a limit.

    Files that the kernel remembers count as free: it forgets them first.
    """
    try:
        limit, used, details = ((cgroup / f"memory.{name}").read_text() for name in ("max", "current", "stat"))
        named = dict(line.split() for line in details.splitlines())
        return int(limit) - int(used) + int(named["active_file"]) + int(named["inactive_file"])
    except (OSError, ValueError, KeyError):
        return sys.maxsize


def free_cached_memory(device: torch.device) -> None:
    """Give cached blocks back to the card, after an edit that ran out of memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
