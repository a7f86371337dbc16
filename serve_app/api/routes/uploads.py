"""Routes about uploads: control images that are sent once and that many requests name."""

from typing import Annotated

from fastapi import APIRouter, Path

from serve_app import errors
from serve_app.api.bodies.file_bodies import FILE_DOCS, FileOfRequest, FileRoute
from serve_app.api.caller import KEYS_IN_DOCS, CallerOfRequest
from serve_app.api.error_answers import error_docs
from serve_app.intake.service import Service
from serve_app.intake.uploads import notes_about_upload
from serve_app.jobs.records import Upload as UploadRecord
from serve_app.schemas.answers import Upload

UPLOAD_ERRORS = (
    errors.BodyInvalid,
    errors.ControlImageInvalid,
    errors.UploadQuotaExceeded,
    errors.Overloaded,
    errors.StoreUnavailable,
    errors.StorageFailed,
)
NOT_FOUND = error_docs(errors.UploadNotFound, errors.StoreUnavailable)
NOT_DELETED = error_docs(errors.UploadNotFound, errors.StoreUnavailable, errors.StorageFailed)
UploadId = Annotated[str, Path(description="The id of the upload: the SHA-256 of its file, in hex.")]


def router(service: Service) -> APIRouter:
    files = APIRouter(tags=["uploads"], dependencies=KEYS_IN_DOCS, route_class=FileRoute)
    routes = APIRouter(tags=["uploads"], dependencies=KEYS_IN_DOCS)

    @files.post("/v1/uploads", responses=error_docs(*UPLOAD_ERRORS), openapi_extra=FILE_DOCS)
    async def upload(file: FileOfRequest, caller: CallerOfRequest) -> Upload:
        """Store a control image once, for any number of requests: each names it `upload:<id>`.

        The body is a form with one file, or the file itself. It is checked like every control image. The same file
        again has the same id and is kept for longer.
        """
        return _answer(await service.uploads.store(file, caller))

    @routes.get("/v1/uploads/{upload_id}", responses=NOT_FOUND)
    async def get_upload(upload_id: UploadId, caller: CallerOfRequest) -> Upload:
        """An upload that has not expired. The id is the SHA-256 of the file, so a client can ask before it sends it."""
        return _answer(await service.uploads.get(upload_id, caller))

    @routes.delete("/v1/uploads/{upload_id}", status_code=204, responses=NOT_DELETED)
    async def delete_upload(upload_id: UploadId, caller: CallerOfRequest) -> None:
        """Delete an upload. Requests that use it are not affected."""
        await service.uploads.delete(upload_id, caller)

    routes.routes.extend(files.routes)
    return routes


def _answer(upload: UploadRecord) -> Upload:
    facts = upload.facts["ignore"]
    width, height = facts.size
    return Upload(
        id=upload.sha256,
        sha256=upload.sha256,
        width=width,
        height=height,
        format=facts.format,
        notes=notes_about_upload(facts),
        expires_at=upload.expires_at,
    )
