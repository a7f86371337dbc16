"""The contact sheet of a sweep, one page of it at a time, as far as its images are finished."""

import asyncio
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import PIL.Image

from serve_app.concurrency.budget import Budget
from serve_app.errors import InvalidParameter
from serve_app.images.contact_sheet import MAX_PIXELS, Sheet, SheetCell, box_of, draw, size_of
from serve_app.intake.resources import Resources
from serve_app.intake.sweeps.layout import Grid, Indices, grid_of
from serve_app.jobs.sweeps.records import CellImage, CellRecord, SweepRecord
from serve_app.policy.sweep_order import Place
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import EditPlan, Status

# The formats of a sheet: Pillow's name and options, by media type.
FORMATS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "image/png": ("PNG", {}),
    "image/jpeg": ("JPEG", {"quality": 90}),
    "image/webp": ("WEBP", {"quality": 90}),
}
# WebP has no larger sides (pixels).
MAX_WEBP_SIDE = 16_383
# Memory of a sheet per pixel, with its encoder's copy, and of the image that is being made smaller (bytes).
BYTES_PER_PIXEL, BYTES_OF_IMAGE = 6, 64 * 2**20
PLACEHOLDERS = {Status.IN_QUEUE: "waiting", Status.IN_PROGRESS: "in progress", Status.CANCELED: "canceled"}


@dataclass(frozen=True)
class SheetOptions:
    """What a client asks of a sheet. `rows` and `columns` name axes, None for the default.

    `page` counts from 1; a page has at most `columns_per_page` and `rows_per_page`. `side` is the longer side of a cell
    (pixels).
    """

    media_type: str = "image/png"
    rows: Sequence[str] | None = None
    columns: Sequence[str] | None = None
    page: int = 1
    columns_per_page: int = 10
    rows_per_page: int = 10
    side: int = 256


@dataclass(frozen=True)
class SheetPage:
    """One page of a sheet, as a file."""

    data: bytes
    page: int
    pages: int


@dataclass(frozen=True)
class _Part:
    """What of the grid a page shows."""

    rows: Sequence[Indices]
    columns: Sequence[Indices]
    pages: int
    text: str


class SweepSheets:
    """Draws sheets, one at a time, within the memory for images."""

    def __init__(self, resources: Resources) -> None:
        self._store = resources.store
        self._artifacts = resources.artifacts
        self._memory: Budget = resources.image_memory
        self._drawing = asyncio.Semaphore(1)

    async def page(self, record: SweepRecord, options: SheetOptions) -> SheetPage:
        """A page of the sheet. Raises InvalidParameter, Overloaded, StoreUnavailable and StorageFailed."""
        grid = grid_of(record.definition.axes, options.rows, options.columns)
        part = part_of(grid, options)
        cells = {cell.place: cell for cell in await self._store.sweeps.cells(record)}
        images = {image.place: image for image in await self._store.sweeps.images(record)}
        sample = await self._store.sweeps.sample(record.id)
        async with self._drawing:
            sheet = await asyncio.to_thread(self._sheet, record, grid, part, options, cells, images, sample)
            width, height = await asyncio.to_thread(size_of, sheet)
            _check_size(width, height, options)
            with self._memory.hold(record.tenant) as hold:
                await hold.take(BYTES_PER_PIXEL * width * height + BYTES_OF_IMAGE)
                data = await asyncio.to_thread(_file, sheet, options.media_type)
        return SheetPage(data, options.page, part.pages)

    def _sheet(
        self,
        record: SweepRecord,
        grid: Grid,
        part: _Part,
        options: SheetOptions,
        cells: Mapping[Place, CellRecord],
        images: Mapping[Place, CellImage],
        sample: EditPlan,
    ) -> Sheet:
        """The contents of a page. Labels take time to make, and images are opened only when they are drawn."""
        shown = [images[place] for place in _places(grid, part) if place in images]
        sizes = [(image.done.width, image.done.height) for image in shown] or [(sample.width, sample.height)]
        boxes = [box_of(size, options.side) for size in sizes]
        return Sheet(
            title=f"{record.model}: {part.text}",
            legend=legend_of(record, grid, sample),
            columns=[grid.labels(column) for column in part.columns],
            rows=[grid.labels(row) for row in part.rows],
            cells=[
                [self._cell(grid.place(row, column), cells, images) for column in part.columns] for row in part.rows
            ],
            box=(max(width for width, _ in boxes), max(height for _, height in boxes)),
        )

    def _cell(self, place: Place, cells: Mapping[Place, CellRecord], images: Mapping[Place, CellImage]) -> SheetCell:
        cell, image = cells.get(place), images.get(place)
        if image is not None and cell is not None and cell.has_image:
            key = image.done.key
            return SheetCell(lambda: opened(self._artifacts, key), "deleted or damaged")
        if cell is None:
            return SheetCell(text="not in this sweep")
        if cell.status == Status.FAILED:
            return SheetCell(text=f"failed: {cell.error_code or ''} {cell.error or ''}", is_failure=True)
        return SheetCell(text=PLACEHOLDERS.get(cell.status, "deleted"))


def opened(artifacts: Artifacts, key: str) -> PIL.Image.Image | None:
    """An image that is stored; None if it was deleted, or is no image. Blocks. Raises StorageFailed."""
    try:
        image = PIL.Image.open(io.BytesIO(artifacts.get(key)))
        image.load()
    except (FileNotFoundError, PIL.UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return None
    return image


def part_of(grid: Grid, options: SheetOptions) -> _Part:
    """What of the grid is on a page: pages go through the columns first. Raises InvalidParameter."""
    across = max(1, ceil(len(grid.columns) / options.columns_per_page))
    pages = across * max(1, ceil(len(grid.rows) / options.rows_per_page))
    if options.page > pages:
        raise InvalidParameter(
            f"page: the sheet has {pages} pages, counted from 1", {"parameter": "page", "pages": pages}
        )
    down, right = divmod(options.page - 1, across)
    first_row, first_column = down * options.rows_per_page, right * options.columns_per_page
    rows = grid.rows[first_row : first_row + options.rows_per_page]
    columns = grid.columns[first_column : first_column + options.columns_per_page]
    text = f"{len(grid.columns)} x {len(grid.rows)}"
    if pages > 1:
        text += (
            f", page {options.page} of {pages} (columns {first_column + 1} to {first_column + len(columns)}, "
            f"rows {first_row + 1} to {first_row + len(rows)})"
        )
    return _Part(rows, columns, pages, text)


def legend_of(record: SweepRecord, grid: Grid, sample: EditPlan) -> list[str]:
    """The fixed parameters, and how many cells are finished. `sample` is the plan of one cell."""
    size = record.definition.base["prompts"][0].get("size") or f"{sample.width}x{sample.height}"
    made = [f"{sample.steps} steps", f"guidance {sample.guidance_scale:g}", f"size {size}", f"sampler {sample.sampler}"]
    if sample.negative_prompt:
        made.append(f"negative prompt {sample.negative_prompt}")
    counts = [f"{count} {status.replace('_', ' ')}" for status, count in sorted(record.counts.items()) if count]
    fixed = grid.fixed
    return [*([" · ".join(fixed)] if fixed else []), " · ".join(made), f"{record.cells} cells: {', '.join(counts)}"]


def _places(grid: Grid, part: _Part) -> list[Place]:
    return [grid.place(row, column) for row in part.rows for column in part.columns]


def _check_size(width: int, height: int, options: SheetOptions) -> None:
    """Raise InvalidParameter for a page that is too large."""
    side = MAX_WEBP_SIDE if options.media_type == "image/webp" else 65_500
    if width * height > MAX_PIXELS or max(width, height) > side:
        raise InvalidParameter(
            f"the page would have {width}x{height} pixels, and at most {MAX_PIXELS} in all and {side} on one side are "
            "drawn: ask for smaller cells, or for fewer columns or rows per page",
            {"parameter": "cell", "width": width, "height": height, "max": MAX_PIXELS},
        )


def _file(sheet: Sheet, media_type: str) -> bytes:
    """The sheet as a file. Blocks. Raises StorageFailed."""
    name, options = FORMATS[media_type]
    buffer = io.BytesIO()
    draw(sheet).save(buffer, name, **options)
    return buffer.getvalue()
