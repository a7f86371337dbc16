"""The device that an editor computes on: its choice and dtype, its streams and memory, and whether it still works."""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from torch import Tensor

from serve_app.telemetry import tracing

logger = logging.getLogger(__name__)

# How the driver, cuBLAS and cuDNN report it. torch reports the last one when none of cuDNN's algorithms has memory.
OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED", "unable to find an engine")
# The control group of this process in a container.
CGROUP = Path("/sys/fs/cgroup")


@dataclass
class StageTimer:
    """Measures the seconds of each stage. On CUDA a stage ends when the work on its stream is complete."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        with tracing.span(name):
            yield
            synchronise_stream(self.device)
        self.seconds[name] = time.perf_counter() - started


def synchronise_stream(device: torch.device) -> None:
    """Wait until the work on this thread's current CUDA stream is complete; other streams are not waited for."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def record_stream(tensor: Tensor) -> Tensor:
    """`tensor`, after `torch.Tensor.record_stream` for this thread's current stream.

    Its memory is not reused before the work on that stream is complete, even if the tensor is freed earlier.
    """
    if tensor.is_cuda:
        tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return tensor


class SideStream:
    """A CUDA stream next to the main one, for work while another edit runs. On a CPU: the caller's thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes this the current stream; on leaving, its work is complete.

        Whoever then uses the tensors on another stream has to call `record_stream` on them.
        """
        with torch.cuda.stream(self._stream):
            yield
            synchronise_stream(self._device)


def choose(device: str) -> torch.device:
    """The torch device for the config's `auto`, `cpu` or `cuda`. Raises RuntimeError for a missing CUDA device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("the config says device: cuda, but torch finds no CUDA device")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def current(device: torch.device) -> AbstractContextManager[None]:
    """Within, Triton launches on this device: it looks at the current one, not at the device of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def more_gpus(count: int) -> list[torch.device]:
    """The GPUs besides the first one of an editor that has `count`."""
    return [torch.device("cuda", index) for index in range(1, count)]


def dtype_for(device: torch.device) -> torch.dtype:
    """fp32 on a CPU; bf16 on CUDA, or fp16 where the card has no bf16."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def is_alive(device: torch.device) -> bool:
    """Whether the device still computes: False once its context is broken, for example by an illegal access.

    A broken context never recovers within its process, so the process has to be replaced.
    """
    try:
        total = torch.ones(8, device=device).sum().item()
    except RuntimeError as error:
        if is_out_of_memory(error):
            return True
        logger.exception("the device %s no longer computes", device)
        return False
    return total == 8.0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device ran out of memory, whether torch's allocator, a library or the driver reports it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, torch.OutOfMemoryError) or any(words in str(seen) for words in OUT_OF_MEMORY):
            return True
        seen = seen.__cause__
    return False


def free_memory(device: torch.device) -> int:
    """Bytes that could be allocated now: on the GPU, or on a CPU in the machine and within the container's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(int(psutil.virtual_memory().available), free_in_container(CGROUP))


def free_in_container(cgroup: Path) -> int:
    """Bytes left below the memory limit of the control group (version 2) at `cgroup`; `sys.maxsize` without a limit.

    The kernel's page cache counts as free: the kernel drops it first.
    """
    try:
        limit, used, details = ((cgroup / f"memory.{name}").read_text() for name in ("max", "current", "stat"))
        named = dict(line.split() for line in details.splitlines())
        return int(limit) - int(used) + int(named["active_file"]) + int(named["inactive_file"])
    except (OSError, ValueError, KeyError):
        return sys.maxsize


# Held by a thread that frees torch's cached blocks, or records a CUDA graph: torch refuses the one during the other.
freeing = threading.Lock()


def free_cached_memory(device: torch.device) -> None:
    """Return torch's cached blocks to the GPU, after an edit that ran out of memory."""
    if device.type == "cuda":
        with freeing:
            torch.cuda.empty_cache()
