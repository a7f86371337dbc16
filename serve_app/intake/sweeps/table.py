"""The table of a sweep as CSV: a row for each cell, with its parameters, seconds and comparisons.

The comparisons say how far images are apart. They do not say which one is better.
"""

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

from serve_app.adapters.lora_root import LoraRoot
from serve_app.errors import ServiceError
from serve_app.intake.resources import Resources
from serve_app.intake.sweeps.axes import step_of_path
from serve_app.intake.sweeps.comparisons import COMPARISONS, KnownJob, Measuring, folders_of, in_table_order, references
from serve_app.intake.tenants import Caller
from serve_app.intake.training.files import TrainingFiles
from serve_app.jobs.sweeps.records import Axes, CellImage, CellRecord, Measures, SweepRecord
from serve_app.policy.sweep_order import Place

COLUMNS = (
    *("cell", "checkpoint", "step", "multiplier", "prompt", "seed", "control_image", "profile", "quality"),
    *("width", "height", "sample_steps", "guidance_scale", "status", "error_code", "request_id", "seconds"),
    *(f"{measure}_{name}" for name in COMPARISONS for measure in ("psnr", "ssim")),
)
# How many rows are measured before they are sent, and before their measures are stored.
ROWS_AT_ONCE = 10
# The PSNR of equal images, as numpy writes it.
EQUAL = "inf"
# Spreadsheets evaluate texts that start with these.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


class SweepTables:
    """Makes tables. Measures are stored, so that each image is compared once."""

    def __init__(self, resources: Resources, root: LoraRoot, files: TrainingFiles) -> None:
        self._store = resources.store
        self._artifacts = resources.artifacts
        self._root = root
        self._files = files
        # Decoded images take up to 50 MB each.
        self._measuring = asyncio.Semaphore(1)

    async def rows(self, record: SweepRecord, caller: Caller) -> AsyncIterator[str]:
        """The lines of the table, a few at a time, in the order of the axes; its head first.

        Raises StoreUnavailable.
        """
        axes = record.definition.axes
        cells = {cell.place: cell for cell in await self._store.sweeps.cells(record)}
        images = {image.place: image for image in await self._store.sweeps.images(record)}
        jobs = await self._jobs(axes, caller)
        measuring = Measuring(self._artifacts, self._root)
        yield _lines([COLUMNS])
        order = in_table_order(list(cells))
        for start in range(0, len(order), ROWS_AT_ONCE):
            places = order[start : start + ROWS_AT_ONCE]
            shown = [images[place] for place in places if place in images and cells[place].has_image]
            wanted = [(image, references(image, axes, images, jobs)) for image in shown]
            async with self._measuring:
                measured = await asyncio.to_thread(measuring.measure_all, wanted)
            new = {image.number: measured[image.number] for image in shown if measured[image.number] != image.measures}
            if new:
                await self._store.sweeps.keep_measures(record.id, new)
            yield _lines([_row(cells[place], axes, images.get(place), measured) for place in places])

    async def _jobs(self, axes: Axes, caller: Caller) -> Mapping[str, KnownJob]:
        """The training jobs that checkpoints are of, by folder. Without the LoRA root there are none."""
        jobs = {}
        for folder in sorted(folders_of(axes)):
            if caller.may_see_training_job(folder):
                with suppress(ServiceError):
                    jobs[folder] = await self._files.in_thread(partial(self._known_job, folder, caller))
        return jobs

    def _known_job(self, folder: str, caller: Caller) -> KnownJob:
        job = self._files.folders.job(folder)
        paths = sorted({path for sample in job.samples for _, path in sample.control_images})
        found = self._files.control_images(job, paths, caller)
        return KnownJob(job, {path: self._files.digest(file) for path, file in found.items()})


def _row(
    cell: CellRecord, axes: Axes, image: CellImage | None, measured: Mapping[int, Mapping[str, Measures]]
) -> Sequence[object]:
    place, plan = cell.place, image.plan if image else None
    made = (plan.width, plan.height, plan.steps, plan.guidance_scale) if plan else ("", "", "", "")
    seconds = round(image.done.timings.get("generate", 0.0), 3) if image else ""
    known = measured.get(cell.number, {})
    measures = [value for name in COMPARISONS for value in _values(known.get(name))]
    return (
        *(cell.number, *_parameters(place, axes), *made),
        *(cell.status, cell.error_code or "", cell.request_id or "", seconds, *measures),
    )


def _parameters(place: Place, axes: Axes) -> tuple[object, ...]:
    path = axes.checkpoints[place.checkpoint]
    step = step_of_path(path)
    return (
        path or "",
        "" if step is None else step,
        "" if place.multiplier is None else axes.multipliers[place.multiplier],
        axes.prompts[place.prompt],
        axes.seeds[place.seed],
        " ".join(axes.control_images[place.control_image]),
        axes.profiles[place.profile] or "",
        axes.qualities[place.quality],
    )


def _values(measures: Measures | None) -> tuple[object, object]:
    if measures is None:
        return "", ""
    return EQUAL if measures.psnr is None else round(measures.psnr, 3), round(measures.ssim, 5)


def _safe(value: object) -> object:
    """A value that a spreadsheet does not take for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def _lines(rows: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([map(_safe, row) for row in rows])
    return buffer.getvalue()
