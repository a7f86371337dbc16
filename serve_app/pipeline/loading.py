"""Reads a checkpoint's weights from its files to where they go, in threads, while the models are built.

The libraries decide which tensor of which file is which parameter: they build the models over mapped files, of which
nothing is read. Meanwhile threads read the files: to a GPU through a little pinned memory, otherwise straight to where
the values stay. So no copy of the weights is made in host memory on the way to a GPU. Decision 50 has the alternatives.
"""

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self
from weakref import finalize

import torch
from torch import Tensor, nn

from serve_app.concurrency.watched_threads import Call, Stalled, Watch, WatchedThreads
from serve_app.config.paths import file_version
from serve_app.errors import CheckpointRefused
from serve_app.pipeline.host_units import host_block, pin, unpin
from serve_app.pipeline.weight_chunks import Chunk, Move, chunks
from serve_app.pipeline.weight_files import (
    PARTS,
    MappedFiles,
    Place,
    Stored,
    common_dtype,
    stored_tensors,
    weight_files,
)
from serve_app.telemetry.start_progress import Progress

# Threads that read at a time, and what each reads at most at once (bytes). Each read and copy costs time under Python's
# lock, however large it is.
THREADS = 8
CHUNK_BYTES = 32 * 2**20
# The longest time that one chunk may take (s).
PATIENCE_S = 60.0


class Files:
    """Reads files for one thread. It keeps the last one open."""

    def __init__(self) -> None:
        self._file: str | None = None
        self._descriptor = -1

    def read(self, place: Place, target: memoryview, watch: Watch) -> None:
        """Fill `target` with the bytes from a place on. Raises CheckpointRefused if the file has fewer now."""
        file, begin = place
        watch.before(file)
        try:
            if file != self._file:
                self.close()
                self._descriptor, self._file = os.open(file, os.O_RDONLY | os.O_CLOEXEC), file
            done = 0
            while done < len(target):
                count = os.preadv(self._descriptor, [target[done:]], begin + done)
                if count == 0:
                    raise CheckpointRefused(f"{file} became shorter while it was read")
                done += count
        except OSError as error:
            raise CheckpointRefused(f"{file} cannot be read: {error}") from error
        finally:
            watch.done()

    def close(self) -> None:
        if self._file is not None:
            os.close(self._descriptor)
            self._file = None

    def __del__(self) -> None:
        self.close()


class Pipe:
    """One thread's way from files to a device: two buffers, so that one is read while the other is copied."""

    def __init__(self, device: torch.device) -> None:
        self.files = Files()
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._buffers = [host_block(CHUNK_BYTES) for _ in range(2)]
        # After the last copy from each buffer.
        self._marks: list[torch.cuda.Event] = []
        if self._stream is not None:
            self._marks = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
            for buffer in self._buffers:
                pin(buffer)
                finalize(self, unpin, buffer)

    def copy(self, chunk: Chunk, watch: Watch) -> None:
        """Read a chunk to where its values go, which may have other dtypes."""
        if self._stream is None and all(move.target.dtype == move.dtype for move in chunk.moves):
            for move in chunk.moves:
                place = Place(chunk.place.file, chunk.place.begin + move.begin)
                self.files.read(place, memory_of(move.target), watch)
            return
        buffer = self._buffers[0][: chunk.size]
        if self._marks:
            self._marks[0].synchronize()
        self.files.read(chunk.place, memory_of(buffer), watch)
        with torch.cuda.stream(self._stream):
            found = [self._values(move, buffer) for move in chunk.moves]
            torch._foreach_copy_([move.target for move in chunk.moves], found, non_blocking=True)
            if self._marks:
                self._marks[0].record()
        self._buffers.reverse()
        self._marks.reverse()

    def _values(self, move: Move, buffer: Tensor) -> Tensor:
        values = buffer[move.begin : move.begin + move.size].view(move.dtype)
        # Converted on the device: torch would convert in host memory, in the caller's thread.
        return values if move.dtype == move.target.dtype else values.to(self._device, non_blocking=True)

    def finish(self) -> None:
        """Wait for the copies."""
        if self._stream is not None:
            self._stream.synchronize()


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor in host memory."""
    return tensor.view(-1).view(torch.uint8).numpy().data


@contextmanager
def refusing_stalls() -> Iterator[None]:
    """Turns Stalled into CheckpointRefused."""
    try:
        yield
    except Stalled as error:
        raise CheckpointRefused(f"reading {error} has stalled: its disk or server sends nothing any more") from error


class HostReader:
    """Copies values that are mapped from files to other host memory, by reading the files. Any thread may use it.

    Reading takes less time than touching mapped memory, whose pages the system provides one by one.
    """

    def __init__(self) -> None:
        self._mapped = MappedFiles()
        self._local = threading.local()

    def copy(self, target: Tensor, values: Tensor, watch: Watch) -> None:
        """Copy `values` to `target`, which is contiguous and of the same dtype. Raises CheckpointRefused."""
        place = self._mapped.place(values)
        if place is None or target.dtype != values.dtype:
            target.copy_(values)
            return
        if not hasattr(self._local, "files"):
            self._local.files = Files()
        memory = memory_of(target)
        for begin in range(0, len(memory), CHUNK_BYTES):
            piece = memory[begin : begin + CHUNK_BYTES]
            self._local.files.read(Place(place.file, place.begin + begin), piece, watch)


class WeightReader:
    """Reads all weights of a checkpoint to a device, from its construction on, and gives them to the models.

    Use it as a context. The device holds the weights once, whatever dtype the files have.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, patience_s: float | None = None) -> None:
        """Floating-point values become `dtype`. Raises CheckpointRefused for a file that is not complete."""
        self._device = device
        self._dtype = dtype
        # The dtype in which the libraries have to build each part, so that they leave the values in the files.
        self.dtypes: dict[str, torch.dtype] = {}
        self._versions: dict[Path, object] = {}
        tensors: list[Stored] = []
        for part in PARTS:
            files = weight_files(folder / part)
            self._versions |= {file: file_version(file) for file in files}
            found = [stored for file in files for stored in stored_tensors(file)]
            self.dtypes[part] = common_dtype(found, dtype)
            tensors += found
        self._read: dict[Place, Tensor] = {}
        self._local = threading.local()
        self._pipes: list[Pipe] = []
        self._progress = Progress(f"weights on {device}", sum(stored.size for stored in tensors))
        self._threads = WatchedThreads(self._calls(tensors), THREADS, patience_s or PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._threads.__exit__(kind, error, traceback)
        self._read.clear()
        self._pipes.clear()

    def place(self, modules: Iterable[nn.Module]) -> None:
        """Wait for the weights, and point the modules' parameters and buffers to them.

        Raises CheckpointRefused if a file cannot be read; the modules cannot be used then.
        """
        with refusing_stalls():
            self._threads.finish()
        for file, version in self._versions.items():
            if file_version(file) != version:
                raise CheckpointRefused(f"{file} was changed while it was read")
        for pipe in self._pipes:
            pipe.finish()
        files = MappedFiles()
        others = []
        for tensor in unique_tensors(modules):
            place = files.place(tensor)
            found = None if place is None else self._read.get(place)
            if found is None or found.shape != tensor.shape:
                others.append(tensor)
            else:
                tensor.data = found
        # What no module wants, for example because the library has converted it.
        self._read.clear()
        for tensor in others:
            tensor.data = tensor.data.to(self._device)
        self._progress.finished()

    def _calls(self, tensors: Iterable[Stored]) -> Iterator[Call]:
        """One call per chunk."""
        for chunk in chunks(self._targets(tensors), CHUNK_BYTES):
            yield partial(self._copy, chunk)

    def _targets(self, tensors: Iterable[Stored]) -> Iterator[tuple[Stored, Tensor]]:
        """Tensors with the memory for their values, which is allocated when a tensor is reached."""
        for stored in tensors:
            dtype = self._dtype if stored.dtype.is_floating_point else stored.dtype
            if stored.elements:
                self._read[stored.place] = torch.empty(stored.shape, dtype=dtype, device=self._device)
                yield stored, self._read[stored.place]

    def _copy(self, chunk: Chunk, watch: Watch) -> None:
        if not hasattr(self._local, "pipe"):
            self._local.pipe = Pipe(self._device)
            self._pipes.append(self._local.pipe)
        self._local.pipe.copy(chunk, watch)
        self._progress.add(chunk.size)


def unique_tensors(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The parameters and buffers of some modules, each once."""
    return list({id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}.values())
