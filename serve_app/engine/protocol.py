"""What an editor needs of an engine: implemented by `TorchEngine` and by the stand-ins of tests and benchmarks.

It imports no torch, so that processes without a model can name these types.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import PIL.Image

from serve_app.tasks import AdapterUse, EditPlan

# What an engine keeps of an edit between `prepare` and `run`. Only the engine that made it looks inside.
Prepared = TypeVar("Prepared")

# Makes a step preview: a small RGB image of what the edit predicts its image to be, at most one pixel per 8x8 pixels of
# the image. Computed only when it is called, which is allowed within `OnStep` only.
MakePreview = Callable[[], PIL.Image.Image]
# Gets the number of the finished step, 0 at the start, and the function that makes its preview, None at the start.
OnStep = Callable[[int, MakePreview | None], None]
ShouldStop = Callable[[], bool]


@dataclass(frozen=True)
class Edited:
    """A finished image: RGB, of the plan's size. `timings` are seconds by stage.

    `effective` and `runtime` are those of `EditDone`. `swapped` is the number of parameters (with hooks: of adapters)
    that were set anew for this edit, `compilations` the number of graphs that torch.compile made during it. `latents`
    are what the image was decoded from: packed, (1, tokens, 64), a tensor on the device; None from stand-ins.
    """

    image: PIL.Image.Image
    timings: dict[str, float]
    effective: dict[str, Any]
    runtime: dict[str, Any]
    swapped: int = 0
    compilations: int = 0
    latents: Any = field(default=None, repr=False)


class HeldAdapters(Protocol):
    """The figures of an engine's host cache."""

    def holds(self, adapter_id: str) -> bool:
        """Whether the adapter is in host memory."""
        ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def evictions(self) -> int:
        """The number of adapters that were dropped for lack of room since the start."""
        ...

    @property
    def load_s(self) -> float | None:
        """The average time of a load in seconds; None before the first load."""
        ...


class Engine(Protocol[Prepared]):
    """One model on one device. `prepare` and `hold` may run in any thread while `run` runs; `run` has one caller."""

    @property
    def alive(self) -> bool:
        """False once the device cannot be used any more; the process has to be replaced then."""
        ...

    @property
    def adapters(self) -> HeldAdapters: ...

    def hold(self, uses: Sequence[AdapterUse]) -> None:
        """Load adapters into host memory, as for an edit that uses them. Raises as `prepare` does."""
        ...

    def prepare(self, plan: EditPlan, control_images: Sequence[bytes]) -> Prepared:
        """Do what can be done for an edit before its turn on the device. `control_images` are encoded files.

        Raises LoraChanged, LoraDownloadFailed, LoraInvalidFile or LoraIncompatible for an adapter that cannot be used,
        StorageFailed if its store cannot be read now, and DeviceLost.
        """
        ...

    def run(self, prepared: Prepared, on_step: OnStep, should_stop: ShouldStop) -> Edited:
        """Make the image. Calls `on_step` with 0 at the start and with n after step n, then asks `should_stop`.

        Previews change no pixel of the image. Raises EditCanceled if it was stopped, LoraIncompatible, OutOfMemory,
        UnusableResult, and DeviceLost when the device failed; `alive` is False from then on.
        """
        ...
