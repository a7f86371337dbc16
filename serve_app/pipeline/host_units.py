"""Weights in host memory that are copied to a device as one block, and the stream for these copies."""

import mmap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from weakref import finalize

import torch
from torch import Tensor, nn

# Parameters begin at multiples of this in a block (bytes), as in torch's own allocations on a GPU: libraries choose
# kernels by the alignment of addresses.
ALIGNMENT = 512


class Unit:
    """Parameters whose values lie in one block of host memory; they are copied to the device together.

    The parameters themselves point there, or into a block on the device after `place`.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        pinned: bool,
        copy: Callable[[Tensor, Tensor], object] = Tensor.copy_,
    ) -> None:
        """Moves the values of `parameters` with `copy`, whose arguments are a new place and the present values.

        `pinned`: a GPU then copies at full speed.
        """
        self.names = tuple(parameters)
        self._parameters = tuple(parameters.values())
        sizes = [-(-parameter.nbytes // ALIGNMENT) * ALIGNMENT for parameter in self._parameters]
        *self._begins, self.size = accumulate(sizes, initial=0)
        self.host = host_block(self.size)
        for parameter, place in zip(self._parameters, self._views(self.host), strict=True):
            copy(place, parameter.data)
        self.withdraw()
        if pinned and self.size:
            # After the values were written: pinning is faster for memory that the system has already provided.
            pin(self.host)
            finalize(self, unpin, self.host)

    def place(self, block: Tensor) -> None:
        """Point the parameters into `block`, whose bytes are, or will be, those of `host`."""
        for parameter, view in zip(self._parameters, self._views(block), strict=True):
            parameter.data = view

    def withdraw(self) -> None:
        """Point the parameters to host memory."""
        self.place(self.host)

    def weights(self) -> dict[str, Tensor]:
        """The parameters' present values by name."""
        return {name: parameter.data for name, parameter in zip(self.names, self._parameters, strict=True)}

    def _views(self, block: Tensor) -> Iterator[Tensor]:
        for parameter, begin in zip(self._parameters, self._begins, strict=True):
            yield block[begin : begin + parameter.nbytes].view(parameter.dtype).view(parameter.shape)


def host_block(size: int) -> Tensor:
    """A block of `size` bytes of host memory, in large pages where the system has them: they are written faster.

    Processes that this one forks do not have it.
    """
    if size == 0:
        return torch.empty(0, dtype=torch.uint8)
    # Not shared with forked processes, which is Python's default: the system has no large pages for shared memory.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
        # Otherwise the system copies pinned memory when the process forks.
        memory.madvise(mmap.MADV_DONTFORK)
    return torch.frombuffer(memory, dtype=torch.uint8)


def pin(block: Tensor) -> None:
    """Pin a block of host memory in place. torch's own pinned memory would be rounded up to a power of two."""
    code = torch.cuda.cudart().cudaHostRegister(block.data_ptr(), block.nbytes, 0)  # type: ignore[no-untyped-call]
    if int(code) != 0:
        raise RuntimeError(f"{block.nbytes} bytes of host memory could not be pinned: CUDA error {int(code)}")


def unpin(block: Tensor) -> None:
    """Undo `pin`, before the memory is freed: the driver may use its addresses otherwise."""
    torch.cuda.cudart().cudaHostUnregister(block.data_ptr())  # type: ignore[no-untyped-call]


class CopyStream:
    """A device's stream for copies from host memory, next to the one that computes. On a CPU, copies happen at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @contextmanager
    def current(self) -> Iterator[None]:
        with torch.cuda.stream(self._stream):
            yield

    def mark(self) -> torch.cuda.Event | None:
        """A mark after the present work of the current stream."""
        if self._stream is None:
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self, mark: torch.cuda.Event | None) -> None:
        """Make the current stream wait for a mark."""
        if mark is not None:
            torch.cuda.current_stream(self.device).wait_event(mark)

    def follow(self) -> None:
        """Make copies wait for all present work of the current stream."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def finish(self) -> None:
        """Make the current stream wait for all present copies."""
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def copy(self, block: Tensor, host: Tensor) -> None:
        """Copy to `block` on the device, in the current stream."""
        block.copy_(host, non_blocking=True)
