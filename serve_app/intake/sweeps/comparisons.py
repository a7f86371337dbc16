"""What images of a sweep are compared with: the cell without a LoRA, the checkpoint before, the training preview."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import PIL.Image

from serve_app.adapters.lora_root import LoraRoot
from serve_app.errors import LoraDownloadFailed, LoraNotFound, LoraPathForbidden, StorageFailed
from serve_app.images.comparison import compare, saved_as
from serve_app.images.similarity import WINDOW, ssim
from serve_app.intake.sweeps.axes import by_step
from serve_app.intake.sweeps.sheet import opened
from serve_app.jobs.sweeps.records import Axes, CellImage, Measures
from serve_app.models.registry import MODELS
from serve_app.policy.sweep_order import Place
from serve_app.storage.artifacts import Artifacts
from serve_app.training.folders import SampleImage, TrainingJob
from serve_app.training.requests import control_paths
from serve_app.training.samples import Sample

# What a cell is compared with, in the order of the table's columns.
NO_LORA, PREVIOUS, PREVIEW = "no_lora", "previous", "training_preview"
COMPARISONS = (NO_LORA, PREVIOUS, PREVIEW)
# Images that are kept decoded while a table is made: of a cell, and of what it is compared with.
DECODED = 3
# A training preview is read up to this size (bytes).
MAX_PREVIEW_BYTES = 32 * 2**20
# The profile that does not follow the trainer, and the largest number to whose multiples sides are floored (pixels).
REFERENCE, LARGEST_DIVISOR = "reference", 32
# The most pixels of a training preview.
MAX_PREVIEW_PIXELS = 25_000_000


@dataclass(frozen=True)
class Reference:
    """An image that a cell is compared with. `id` changes with its content; `preview` is set for the trainer's."""

    id: str
    image: CellImage | None = None
    preview: SampleImage | None = None


@dataclass(frozen=True)
class KnownJob:
    """A training job, and the digests (hex) of the control images of its samples that were found, by their paths."""

    job: TrainingJob
    digests: Mapping[str, str | None]


def references(
    cell: CellImage, axes: Axes, images: Mapping[Place, CellImage], jobs: Mapping[str, KnownJob]
) -> dict[str, Reference]:
    """What a cell is compared with, by the name of the comparison. `jobs` are training jobs by folder."""
    found: dict[str, Reference] = {}
    for name, place in ((NO_LORA, without_lora(cell.place, axes)), (PREVIOUS, before(cell.place, axes))):
        other = images.get(place) if place is not None else None
        if other is not None:
            found[name] = Reference(other.done.sha256, image=other)
    preview = preview_of(cell, axes, jobs)
    if preview is not None:
        found[PREVIEW] = Reference(f"{preview.path} {preview.time_ms}", preview=preview)
    return found


def without_lora(place: Place, axes: Axes) -> Place | None:
    """The cell without a LoRA that is otherwise the same: of the checkpoint null, else of the multiplier 0."""
    if axes.checkpoints[place.checkpoint] is None:
        return None
    if None in axes.checkpoints:
        return place._replace(checkpoint=axes.checkpoints.index(None), multiplier=None)
    if 0.0 in axes.multipliers and place.multiplier != axes.multipliers.index(0.0):
        return place._replace(multiplier=axes.multipliers.index(0.0))
    return None


def before(place: Place, axes: Axes) -> Place | None:
    """The same cell of the checkpoint before: of the same folder, by step, in whatever order they were named."""
    path = axes.checkpoints[place.checkpoint]
    if path is None:
        return None
    earlier = [
        (by_step(other), index)
        for index, other in enumerate(axes.checkpoints)
        if other is not None and by_step(other)[0] == by_step(path)[0] and by_step(other) < by_step(path)
    ]
    return place._replace(checkpoint=max(earlier)[1]) if earlier else None


def folders_of(axes: Axes) -> set[str]:
    """The folders of the checkpoints below the LoRA root, which may be training jobs."""
    paths = (path for path in axes.checkpoints if path is not None and "://" not in path)
    return {folder for path in paths if (folder := path.rpartition("/")[0])}


def preview_of(cell: CellImage, axes: Axes, jobs: Mapping[str, KnownJob]) -> SampleImage | None:
    """The trainer's preview of the same checkpoint and settings, if there is one: see `_is_same`."""
    path = axes.checkpoints[cell.place.checkpoint]
    known = jobs.get((path or "").rpartition("/")[0])
    if known is None:
        return None
    job = known.job
    step = next((each.step for each in job.weights if each.path == path), None)
    if step is None:
        return None
    images = job.images_of(step)
    fitting = (sample.number for sample in job.samples if sample.number in images and _is_same(sample, cell, known))
    number = next(fitting, None)
    return None if number is None else images[number]


def _is_same(sample: Sample, cell: CellImage, known: KnownJob) -> bool:
    """Whether the trainer made its preview from what the cell was made from, and the cell follows the trainer."""
    plan = cell.plan
    if sample.problem is not None or sample.is_random or plan.profile == REFERENCE or len(plan.adapters) != 1:
        return False
    theirs = (sample.prompt, sample.negative_prompt, sample.seed, sample.steps, sample.guidance_scale)
    ours = (plan.prompt, plan.negative_prompt, plan.seed, plan.steps, plan.guidance_scale)
    if theirs != ours or plan.adapters[0].scale != sample.network_multiplier:
        return False
    # Theirs are floored to multiples of 8, ours to those of the model.
    if not (0 <= sample.width - plan.width < LARGEST_DIVISOR and 0 <= sample.height - plan.height < LARGEST_DIVISOR):
        return False
    paths = control_paths(sample, MODELS[plan.model])
    return [known.digests.get(path) for path in paths] == list(plan.control_images)


class Measuring:
    """Compares images, and keeps the latest decoded ones. Blocks: for one thread at a time."""

    def __init__(self, artifacts: Artifacts, root: LoraRoot) -> None:
        self._artifacts = artifacts
        self._root = root
        self._decoded: OrderedDict[str, PIL.Image.Image | None] = OrderedDict()

    def measure_all(self, cells: Sequence[tuple[CellImage, Mapping[str, Reference]]]) -> dict[int, dict[str, Measures]]:
        """`measure` each cell; the results by their numbers. Nothing stays decoded."""
        try:
            return {cell.number: self.measure(cell, wanted) for cell, wanted in cells}
        finally:
            self._decoded.clear()

    def measure(self, cell: CellImage, wanted: Mapping[str, Reference]) -> dict[str, Measures]:
        """The measures of a cell's image, those that it has already included.

        An image that is gone, cannot be read now, or has another size, is left out.
        """
        found: dict[str, Measures] = {}
        for name, reference in wanted.items():
            known = cell.measures.get(name)
            if known is not None and known.against == reference.id:
                found[name] = known
            elif (measures := self._measure(cell, reference)) is not None:
                found[name] = measures
        return found

    def _measure(self, cell: CellImage, reference: Reference) -> Measures | None:
        ours, theirs = self._image(cell), self._reference(reference)
        if ours is None or theirs is None or ours.size != theirs.size or min(ours.size) < WINDOW:
            return None
        if reference.preview is not None:
            ours = saved_as(ours, reference.preview.format)
        return Measures(reference.id, compare(ours, theirs).psnr_db, ssim(ours, theirs))

    def _reference(self, reference: Reference) -> PIL.Image.Image | None:
        if reference.image is not None:
            return self._image(reference.image)
        assert reference.preview is not None
        return self._preview(reference.preview)

    def _image(self, cell: CellImage) -> PIL.Image.Image | None:
        key = cell.done.key
        if key not in self._decoded:
            self._keep(key, self._opened(key))
        self._decoded.move_to_end(key)
        return self._decoded[key]

    def _opened(self, key: str) -> PIL.Image.Image | None:
        try:
            image = opened(self._artifacts, key)
        except StorageFailed:
            # The table has its other figures, and the next one perhaps these.
            return None
        return None if image is None else image.convert("RGB")

    def _keep(self, key: str, image: PIL.Image.Image | None) -> None:
        self._decoded[key] = image
        while len(self._decoded) > DECODED:
            self._decoded.popitem(last=False)

    def _preview(self, preview: SampleImage) -> PIL.Image.Image | None:
        try:
            data = self._root.content(self._root.find(preview.path), MAX_PREVIEW_BYTES)
            image = PIL.Image.open(BytesIO(data), formats=["JPEG", "PNG", "WEBP"])
            if image.width * image.height > MAX_PREVIEW_PIXELS:
                return None
            return image.convert("RGB")
        except (LoraNotFound, LoraPathForbidden, LoraDownloadFailed, OSError, SyntaxError, ValueError):
            return None


def in_table_order(places: Sequence[Place]) -> list[Place]:
    """Places so that what is compared follows each other: all checkpoints of the same prompt, seed and multiplier.

    Cells without a LoRA come before those that are compared with them.
    """

    def key(place: Place) -> tuple[int, ...]:
        rest = (place.control_image, place.prompt, place.seed, place.profile, place.quality)
        return (*rest, -1 if place.multiplier is None else place.multiplier, place.checkpoint)

    return sorted(places, key=key)
