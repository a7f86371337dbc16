"""One device's part of a shared forward, launched as CUDA graphs that an image records in its second step.

Threads that share a branch need the interpreter's lock to launch, so for n devices launching takes n times as long, and
longer than computing. A graph launches all kernels between two exchanges at once. The kernels and their order are the
same, so the values are too.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from serve_app.errors import DeviceLost
from serve_app.pipeline.device import free_cached_memory, freeing
from serve_app.pipeline.forwards import Forward
from serve_app.pipeline.fusion import modulations
from serve_app.pipeline.sequence_parallel import Member

# Intermediate values of a block that are alive at a time, per token and width, rounded up: the widest have four widths.
VALUES = 40


class Launches:
    """Sends one device's part through the transformer's blocks, in every step of every image.

    The first step of an image launches each kernel, since it may compile kernels and choose algorithms. The second one
    records, and computes segment by segment meanwhile. A recording holds for an image: the adapters of the next one may
    lie elsewhere. Only fused blocks are recorded, whose modulations have a fixed place, and only where there is room.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # The kernels between two exchanges each.
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._last: Forward | None = None
        # What a recording holds for: a tensor that only the steps of one image share, and numbers of tokens.
        self._image: Tensor | None = None
        self._lengths: tuple[int, int, int] | None = None
        self._may_record = True
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def forget(self) -> None:
        """Drop what was recorded. torch may give its memory to others then."""
        self._graphs.clear()
        self._inputs = self._last = self._image = self._lengths = None
        self._may_record = True

    def through(self, transformer: QwenImageTransformer2DModel, part: Forward, member: Member) -> None:
        """Replace the states of `part` by those after the last block, as the member of an exchange."""
        found = modulations(transformer)
        image = found[0].now if found and self._device.type == "cuda" else None
        lengths = (part.images.shape[1], part.text.shape[1], member.tokens)
        if image is None or image is not self._image or lengths != self._lengths:
            self.forget()
            self._image, self._lengths = image, lengths
            self._launch(transformer, part)
        elif self._graphs:
            self._repeat(part, member)
        elif self._may_record and self._has_room(part):
            self._record(transformer, part, member)
        else:
            self._may_record = False
            self._launch(transformer, part)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, launches are not recorded. What was recorded before has been launched."""
        self._finish()
        yield
        self._start()

    def _has_room(self, part: Forward) -> bool:
        """Whether there is memory to record in. torch does not free what it has cached while it records."""
        values = VALUES * part.images.shape[-1] * (part.images.shape[1] + part.text.shape[1])
        needed = values * part.images.element_size()
        if torch.cuda.mem_get_info(self._device)[0] < needed:
            free_cached_memory(self._device)
        return torch.cuda.mem_get_info(self._device)[0] >= needed

    def _launch(self, transformer: QwenImageTransformer2DModel, part: Forward) -> None:
        for block in transformer.transformer_blocks:
            part.through(block)

    def _record(self, transformer: QwenImageTransformer2DModel, part: Forward, member: Member) -> None:
        self._inputs, self._memory = (part.images, part.text), torch.cuda.graph_pool_handle()
        # Recording needs another stream than the default one.
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), member.recorded_by(self), self._ended():
            self._start()
            self._launch(transformer, part)
            self._finish()
        current.wait_stream(self._stream)
        self._last = part

    def _repeat(self, part: Forward, member: Member) -> None:
        assert self._inputs is not None
        assert self._last is not None
        images, text = self._inputs
        images.copy_(part.images)
        text.copy_(part.text)
        *before_exchanges, last = self._graphs
        for graph in before_exchanges:
            graph.replay()
            member.exchange_written()
        last.replay()
        part.images, part.text = self._last.images, self._last.text

    def _start(self) -> None:
        # Another thread may allocate and copy meanwhile, for the next edit. But it must not free cached memory.
        freeing.acquire()
        self._graph = torch.cuda.CUDAGraph()
        self._graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")

    def _finish(self) -> None:
        graph = self._graph
        assert graph is not None
        graph.capture_end()
        self._graph = None
        freeing.release()
        graph.replay()
        self._graphs.append(graph)

    @contextmanager
    def _ended(self) -> Iterator[None]:
        """Within, an error ends what is being recorded. Raises DeviceLost if torch cannot end it."""
        try:
            yield
        except BaseException as error:
            graph, self._graph = self._graph, None
            if graph is not None:
                try:
                    graph.capture_end()
                except RuntimeError as second:
                    raise DeviceLost(f"CUDA cannot end a recording after an error: {second}") from error
                finally:
                    freeing.release()
            # Kernels of earlier segments may still read what is freed now.
            self._stream.synchronize()
            self.forget()
            raise
