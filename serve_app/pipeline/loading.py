"""Moves a checkpoint's weights from its files to where they go, in threads, and logs how far that is.

safetensors maps its files into memory, so nothing is read from the disk before its bytes are used. Several threads keep
a disk busy, and no copy of the weights is made in host memory on the way to a GPU.
"""

import logging
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# Threads that read at a time.
THREADS = 8


class Progress:
    """Logs each tenth of some bytes. Any thread may call it."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._done = self._shown = 0
        self._started = time.perf_counter()
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        """This many more bytes are done."""
        with self._lock:
            self._done += size
            tenth = 10 * self._done // max(1, self._total)
            if tenth == self._shown:
                return
            self._shown = tenth
            seconds = time.perf_counter() - self._started
            done, total = (value / 2**30 for value in (self._done, self._total))
        logger.info("%s: %.1f of %.1f GiB after %.1f s", self._what, done, total, seconds)


def move(modules: Iterable[nn.Module], device: torch.device) -> None:
    """Move the parameters and buffers of some modules to `device`.

    Raises the first error of a copy. The modules cannot be used then.
    """
    tensors = list({id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}.values())
    progress = Progress(f"weights on {device}", sum(tensor.nbytes for tensor in tensors))

    def copy(tensor: Tensor) -> None:
        tensor.data = tensor.data.to(device)
        progress.add(tensor.nbytes)

    with ThreadPoolExecutor(THREADS, "loading") as threads:
        pending = [threads.submit(copy, tensor) for tensor in tensors]
        try:
            for each in pending:
                each.result()
        finally:
            threads.shutdown(cancel_futures=True)
