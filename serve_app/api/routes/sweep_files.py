"""Routes of the files that come out of a sweep: its contact sheet, table and archive."""

from collections.abc import AsyncIterator
from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from serve_app import errors
from serve_app.api.caller import CallerOfRequest, links_of
from serve_app.api.error_answers import error_docs
from serve_app.api.image_answers import BINARY, BYTES, image_answer, image_docs, sent_type
from serve_app.intake.answers.bodies import Links
from serve_app.intake.service import Service
from serve_app.intake.sweeps.answers import sweep_of
from serve_app.intake.sweeps.layout import FIELDS
from serve_app.intake.sweeps.sheet import FORMATS, SheetOptions
from serve_app.schemas.text import LookupText

T = TypeVar("T")

SweepId = Annotated[str, Path(description="The id of the sweep.")]
SheetFormat = Literal["png", "jpeg", "webp"]
CSV, ZIP = "text/csv", "application/zip"
SHEET_HEADERS = {
    "X-Page": {"description": "The number of this page, from 1.", "schema": {"type": "integer"}},
    "X-Pages": {"description": "How many pages the sheet has.", "schema": {"type": "integer"}},
}
AxisNames = Annotated[
    LookupText | None,
    Query(description=f"Axes, separated by commas, the first one outermost: {', '.join(FIELDS)}."),
]


def add_routes(routes: APIRouter, service: Service) -> None:
    _add_sheet(routes, service)
    _add_table(routes, service)


def _add_sheet(routes: APIRouter, service: Service) -> None:
    @routes.get(
        "/v1/sweeps/{sweep_id}/sheet",
        response_class=Response,
        responses=error_docs(
            errors.SweepNotFound,
            errors.InvalidParameter,
            errors.Overloaded,
            errors.StoreUnavailable,
            errors.StorageFailed,
        )
        | image_docs(FORMATS, SHEET_HEADERS),
    )
    async def get_sheet(
        request: Request,
        sweep_id: SweepId,
        caller: CallerOfRequest,
        rows: AxisNames = None,
        columns: AxisNames = None,
        page: Annotated[int, Query(ge=1, le=10_000, description="The page, from 1.")] = 1,
        columns_per_page: Annotated[int, Query(ge=1, le=100, description="The most columns of a page.")] = 10,
        rows_per_page: Annotated[int, Query(ge=1, le=100, description="The most rows of a page.")] = 10,
        cell: Annotated[int, Query(ge=32, le=1024, description="Pixels of the longer side of a cell.")] = 256,
        format: Annotated[
            SheetFormat | None, Query(description="The file format. Default: the first in `Accept`, or png.")
        ] = None,
        accept: Annotated[str, Header(include_in_schema=False)] = "",
    ) -> Response:
        """The contact sheet: small images in a grid with labels, and what all of them have in common above it.

        Cells that are not finished say so, and failed ones why. Axes with several values that neither `rows` nor
        `columns` names become rows; by default checkpoints lie across the sheet. Large sheets have several pages.
        """
        options = SheetOptions(
            media_type_of(format, accept), _names(rows), _names(columns), page, columns_per_page, rows_per_page, cell
        )
        found = await service.sweep_sheets.page(await service.sweeps.get(sweep_id, caller), options)
        headers = {
            "X-Page": str(found.page),
            "X-Pages": str(found.pages),
            "Cache-Control": "no-cache",
        }
        return image_answer(request, found.data, options.media_type, headers)


def _add_table(routes: APIRouter, service: Service) -> None:
    found = error_docs(errors.SweepNotFound, errors.StoreUnavailable)

    @routes.get(
        "/v1/sweeps/{sweep_id}/cells.csv",
        response_class=StreamingResponse,
        responses=found | {200: {"description": "The table.", "content": {CSV: {"schema": {"type": "string"}}}}},
    )
    async def get_table(sweep_id: SweepId, caller: CallerOfRequest) -> StreamingResponse:
        """A row for each cell: parameters, status, seconds, and PSNR (dB) and SSIM of its image.

        Images are compared with that of the same cell without a LoRA, with that of the checkpoint before, and with the
        training preview of the same settings, where these exist. The first call compares, which takes about 0.1 s per
        image of 1 MP; the figures are kept.
        """
        record = await service.sweeps.get(sweep_id, caller)
        rows = service.sweep_tables.rows(record, caller)
        # Before the answer starts, so that an error still decides its status.
        first = await anext(rows)
        return StreamingResponse(_chained(first, rows), media_type=CSV, headers=_named(sweep_id, "csv"))

    @routes.get(
        "/v1/sweeps/{sweep_id}/archive",
        response_class=StreamingResponse,
        responses=error_docs(errors.SweepNotFound, errors.StoreUnavailable, errors.StorageFailed)
        | {200: {"description": "The archive.", "content": dict.fromkeys((ZIP, BYTES), BINARY)}},
    )
    async def get_archive(
        request: Request,
        sweep_id: SweepId,
        caller: CallerOfRequest,
        links: Annotated[Links, Depends(links_of(service))],
    ) -> StreamingResponse:
        """A ZIP of the finished images, with `sweep.json` and `cells.csv`. It is made while it is sent."""
        record = await service.sweeps.get(sweep_id, caller)
        description = sweep_of(record, await service.sweeps.cells(record), links).model_dump(mode="json")
        parts = service.sweep_archives.parts(record, caller, description)
        # Before the answer starts, so that an error still decides its status.
        first = await anext(parts)
        media_type = sent_type(request, ZIP)
        return StreamingResponse(_chained(first, parts), media_type=media_type, headers=_named(sweep_id, "zip"))


async def _chained(first: T, others: AsyncIterator[T]) -> AsyncIterator[T]:
    yield first
    async for part in others:
        yield part


def media_type_of(format: SheetFormat | None, accept: str) -> str:
    """The media type of a sheet: as the query says, else the first that the client accepts by name, else PNG."""
    if format is not None:
        return f"image/{format}"
    names = (name.partition(";")[0].strip().lower() for name in accept.split(","))
    return next((name for name in names if name in FORMATS), "image/png")


def _names(axes: str | None) -> list[str] | None:
    return None if axes is None else [name.strip() for name in axes.split(",") if name.strip()]


def _named(sweep_id: str, suffix: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="sweep-{sweep_id[:8]}.{suffix}"'}
