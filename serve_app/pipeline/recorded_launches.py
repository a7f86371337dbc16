"""One device's part of a shared forward, launched as CUDA graphs that an image records in its second step.

Threads that share a branch need the interpreter's lock to launch, so for n devices launching takes n times as long, and
longer than computing. A graph launches all kernels between two exchanges at once. The kernels and their order are the
same, so the values are too.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from serve_app.pipeline.device import free_cached_memory
from serve_app.pipeline.forwards import Forward
from serve_app.pipeline.fusion import modulations
from serve_app.pipeline.sequence_parallel import Member

# Intermediate values of a block that are alive at a time, per token and width, rounded up: the widest have four widths.
VALUES = 24


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
        self._lengths: tuple[int, int] | None = None
        self._may_record = True
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._memory = torch.cuda.graph_pool_handle()
            # A graph that is never launched. Without one, torch would not take the memory of earlier graphs again.
            self._keeper = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._keeper, pool=self._memory, stream=self._stream):
                torch.zeros(1, device=device)

    def through(self, transformer: QwenImageTransformer2DModel, part: Forward, member: Member) -> None:
        """Replace the states of `part` by those after the last block, as the member of an exchange."""
        found = modulations(transformer)
        image = found[0].now if found and self._device.type == "cuda" else None
        lengths = (part.images.shape[1], part.text.shape[1])
        if image is None or image is not self._image or lengths != self._lengths:
            self._forget()
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
        self._inputs = (part.images, part.text)
        # Recording needs another stream than the default one.
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream), member.recorded_by(self):
                self._start()
                self._launch(transformer, part)
                self._finish()
        except BaseException:
            self._abandon()
            raise
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
        self._graph = torch.cuda.CUDAGraph()
        # Another thread may allocate and copy meanwhile, for the next edit.
        self._graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")

    def _finish(self) -> None:
        graph, self._graph = self._graph, None
        assert graph is not None
        graph.capture_end()
        graph.replay()
        self._graphs.append(graph)

    def _abandon(self) -> None:
        """After an error, end what is being recorded."""
        graph, self._graph = self._graph, None
        if graph is not None:
            # The error may have ended it already.
            with suppress(RuntimeError):
                graph.capture_end()
        self._forget()

    def _forget(self) -> None:
        self._graphs.clear()
        self._inputs = self._last = self._image = self._lengths = None
        self._may_record = True
