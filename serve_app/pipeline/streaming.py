"""Weights that wait in host memory and are on the device only while they are needed, within a limit of its memory."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from serve_app.concurrency.watched_threads import Watch, WatchedThreads
from serve_app.pipeline import device as devices
from serve_app.pipeline import loading
from serve_app.pipeline.checkpoint import Pipeline
from serve_app.pipeline.fusion import Modulation, modulations
from serve_app.pipeline.host_units import CopyStream, Unit
from serve_app.pipeline.layer_stream import SLOTS, Changes, LayerStream, NoChanges, evenly
from serve_app.pipeline.loading import HostReader, refusing_stalls
from serve_app.telemetry.start_progress import Progress

# What the driver takes of a card for a process before its first tensor (bytes).
CONTEXT_BYTES = int(0.8 * 2**30)
# Left free next to what is counted, for memory that torch cannot use because of its size (bytes).
SPARE_BYTES = 2**28
# What text encoder and vision encoder need in addition to weights, for the longest prompt with three images (bytes).
ENCODER_BYTES = 2 * 2**30
logger = logging.getLogger(__name__)


class StreamedPart:
    """One model of a pipeline. While it is open, its layers are streamed and its other weights are on the device."""

    def __init__(
        self,
        module: nn.Module,
        sequences: Sequence[Sequence[nn.Module]],
        copies: CopyStream,
        changes: Changes,
        progress: Progress,
        unused: Sequence[nn.Module] = (),
    ) -> None:
        """Moves all weights to host memory. `unused` modules stay there; buffers stay on the device."""
        self._copies = copies
        self._changes = changes
        self._place: Tensor | None = None
        # The version of the other weights that are there.
        self._loaded: object = None
        pinned = copies.device.type == "cuda"
        for buffer in module.buffers():
            buffer.data = buffer.data.to(copies.device)
        named = dict(module.named_parameters())
        names = {id(parameter): name for name, parameter in named.items()}
        for part in unused:
            for parameter in part.parameters():
                del named[names.pop(id(parameter))]
        groups: list[dict[str, nn.Parameter]] = []

        def unit(part: nn.Module) -> int:
            """The number of a unit of the parameters of a module that are in no unit yet."""
            groups.append({names.pop(id(p)): p for p in part.parameters() if id(p) in names})
            return len(groups) - 1

        rows = [
            [[*((m, unit(m)) for m in modulations_of(layer)), (layer, unit(layer))] for layer in layers]
            for layers in sequences
        ]
        fixed = unit(module)
        units = make_units(groups, progress, pinned=pinned)
        self._fixed = units[fixed]
        # How many layers of each sequence stayed on the device when the part was last open.
        self.stay: list[int] = []
        self._modulations = {
            id(part[1].weight): units[number]
            for layers in rows
            for row in layers
            for part, number in row
            if isinstance(part, nn.Sequential)
        }
        self.streams = [
            LayerStream(layers, [[units[number] for _, number in row] for row in found], copies, changes)
            for layers, found in zip(sequences, rows, strict=True)
        ]

    @property
    def is_open(self) -> bool:
        return self._place is not None

    def open(self, room: int) -> None:
        """Take at most `room` bytes of the device's memory, but at least what a forward needs."""
        left = room - self._fixed.size - sum(SLOTS * max(stream.sizes) for stream in self.streams)
        plans: list[int] = []
        # The last one first: a prompt's two texts pass through it, while the images are encoded once.
        for stream in reversed(self.streams):
            count = stays(stream.sizes, left)
            left -= count * max(stream.sizes)
            plans.insert(0, count)
        sizes = [self._fixed.size]
        for stream, count in zip(self.streams, plans, strict=True):
            slots = 0 if count == len(stream.sizes) else min(SLOTS, len(stream.sizes) - count)
            sizes += [max(stream.sizes)] * (count + slots)
        # One allocation, so that the pieces fit however the memory was used before.
        everything = torch.empty(sum(sizes), dtype=torch.uint8, device=self._copies.device)
        fixed, *blocks = torch.split(everything, sizes)
        # This memory may have been freed by work that has not ended.
        self._copies.follow()
        self.stay = plans
        for stream, count in zip(self.streams, plans, strict=True):
            total = len(stream.sizes)
            resident = dict(zip(evenly(count, total), blocks, strict=False))
            slots = 0 if count == total else min(SLOTS, total - count)
            stream.open(resident, blocks[count : count + slots])
            blocks = blocks[count + slots :]
        self._place = fixed
        self._fixed.place(fixed)
        self.refresh()
        shown = ", ".join(f"{count} of {len(s.sizes)} layers" for s, count in zip(self.streams, plans, strict=True))
        logger.debug("streaming: %.2f GiB on the device, %s stay", sum(sizes) / 2**30, shown or "everything")

    def refresh(self) -> None:
        """Adopt other changes of the weights, after they have changed."""
        for stream in self.streams:
            stream.restart()
        version = self._changes.version(self._fixed.names)
        if self._loaded != (version,):
            self._loaded = None
            self._arrive(self._fixed, self._place)
            self._loaded = (version,)

    def close(self) -> None:
        """Give the device's memory back."""
        self._copies.finish()
        for stream in self.streams:
            stream.close()
        self._fixed.withdraw()
        self._place = self._loaded = None

    def fuse(self) -> None:
        """The blocks compute with modulations that are made for all steps at once, so the layers leave them out."""
        for stream in self.streams:
            stream.leave_out(set(self._modulations.values()))

    @contextmanager
    def visiting(self, modulation: Modulation) -> Iterator[None]:
        """Within, the weights of a fused block's modulation are on the device."""
        unit = self._modulations[id(modulation[1].weight)]
        block = torch.empty(unit.size, dtype=torch.uint8, device=self._copies.device)
        unit.place(block)
        self._arrive(unit, block)
        try:
            yield
        finally:
            unit.withdraw()

    def _arrive(self, unit: Unit, block: Tensor | None) -> None:
        """Copy a unit and merge its changes, in the stream that computes."""
        if block is None:
            raise RuntimeError("a part is used outside of its stage: this is a bug")
        self._copies.copy(block, unit.host)
        self._changes.merge(unit.weights(), self._changes.fetch(unit.names, self._copies.device))


def make_units(groups: Sequence[Mapping[str, nn.Parameter]], progress: Progress, *, pinned: bool) -> list[Unit]:
    """A unit of each group of parameters, made in threads: each is pinned while others are still read."""
    sizes = [sum(parameter.nbytes for parameter in group.values()) for group in groups]
    reader = HostReader()
    made: dict[int, Unit] = {}

    def make(number: int, watch: Watch) -> None:
        def copy(place: Tensor, values: Tensor) -> None:
            reader.copy(place, values, watch)
            progress.add(values.nbytes)

        made[number] = Unit(groups[number], pinned=pinned, copy=copy)

    # The largest ones first, so that no thread has one left at the end.
    order = sorted(range(len(groups)), key=lambda number: -sizes[number])
    calls = (partial(make, number) for number in order)
    with refusing_stalls(), WatchedThreads(calls, loading.THREADS, loading.PATIENCE_S) as threads:
        threads.finish()
    return [made[number] for number in range(len(groups))]


def modulations_of(layer: nn.Module) -> list[nn.Sequential]:
    """The modulations of a layer, if it is a block of the transformer."""
    return [getattr(layer, name) for name in ("img_mod", "txt_mod") if hasattr(layer, name)]


def stays(sizes: Sequence[int], room: int) -> int:
    """How many of some layers can stay in `room` bytes, which the blocks of the others are not part of."""
    if sum(sizes) <= room + SLOTS * max(sizes):
        return len(sizes)
    return max(0, min(len(sizes), room // max(sizes)))


class StreamedPlacement:
    """The `Placement` of a pipeline whose weights are in host memory: one part at a time is on the device.

    A part stays there until another one is needed or an edit fails.
    """

    def __init__(self, pipeline: Pipeline, device: torch.device, limit: int | None, changes: Changes) -> None:
        """Moves all weights to host memory. `limit`: bytes of the device that this process may take; None: all.

        `changes` are those of the transformer's weights.
        """
        self.device = device
        if limit is not None and device.type == "cuda":
            limit -= CONTEXT_BYTES
            limit_memory(device, limit)
        self._limit = limit
        copies = CopyStream(device)
        encoder = pipeline.text_encoder
        sequences = [encoder.model.visual.blocks, encoder.model.language_model.layers]
        self._open: StreamedPart | None = None
        self._activations = 0
        modules, unused = [encoder, pipeline.transformer, pipeline.vae], [encoder.lm_head]
        size = sum(parameter.nbytes for parameter in {p for module in modules for p in module.parameters()})
        size -= sum(parameter.nbytes for module in unused for parameter in module.parameters())
        progress = Progress("weights in host memory", size)
        blocks = [pipeline.transformer.transformer_blocks]
        self._parts: Mapping[nn.Module, StreamedPart] = {
            encoder: StreamedPart(encoder, sequences, copies, NoChanges(), progress, unused),
            pipeline.transformer: StreamedPart(pipeline.transformer, blocks, copies, changes, progress),
            pipeline.vae: StreamedPart(pipeline.vae, [], copies, NoChanges(), progress),
        }
        progress.finished()

    @contextmanager
    def working(self, part: nn.Module, activations: int = ENCODER_BYTES) -> Iterator[None]:
        """Within, `part` can compute, and `activations` bytes are left for its tensors, if it can compute at all."""
        wanted = self._parts[part]
        try:
            if self._open is not wanted or activations > self._activations:
                self._close()
                self._open, self._activations = wanted, activations
                wanted.open(self._room() - activations)
            yield
        except BaseException:
            self._close()
            raise

    def refresh(self, part: nn.Module) -> None:
        """Adopt other changes of a part's weights. The part works."""
        self._parts[part].refresh()

    def fused(self, part: nn.Module) -> None:
        """The blocks of the transformer have been fused."""
        if modulations(part):
            self._close()
            self._parts[part].fuse()

    def visiting(self, part: nn.Module) -> Callable[[Modulation], AbstractContextManager[None]]:
        """The contexts in which the modulations of the fused transformer can be computed."""
        return self._parts[part].visiting

    def _room(self) -> int:
        free = devices.free_memory(self.device)
        if self._limit is not None:
            used = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0
            free = min(free, self._limit - used)
        return free - SPARE_BYTES

    def _close(self) -> None:
        if self._open is not None and self._open.is_open:
            self._open.close()
        self._open = None
        # The next part needs large blocks.
        devices.free_cached_memory(self.device)


def limit_memory(device: torch.device, limit: int) -> None:
    """Make torch's allocations beyond `limit` bytes fail in this process."""
    _, total = torch.cuda.mem_get_info(device)
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), index)
