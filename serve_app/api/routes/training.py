"""Routes about training jobs: what ai-toolkit left below the LoRA root, and its previews made again."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from serve_app import errors
from serve_app.api.bodies.json_bodies import JsonRoute
from serve_app.api.caller import KEYS_IN_DOCS, CallerOfRequest, links_of
from serve_app.api.error_answers import error_docs
from serve_app.api.image_answers import image_answer, image_docs
from serve_app.api.routes.inference import SUBMIT_ERRORS
from serve_app.api.routes.models import DEFAULT_PAGE, Cursor, Limit
from serve_app.api.routes.requests import IfNoneMatch, names_etag
from serve_app.intake.answers.bodies import Links
from serve_app.intake.service import Service
from serve_app.intake.training.jobs import job_url
from serve_app.schemas.text import Text, Url
from serve_app.schemas.training import (
    PreviewsRequest,
    PreviewsStarted,
    PreviewsStatus,
    TrainingJobInfo,
    TrainingJobList,
)
from serve_app.training.folders import no_training_job

OF_ROOT = (errors.Overloaded, errors.StorageFailed)
OF_JOB = (errors.TrainingJobNotFound, errors.LoraDownloadFailed, *OF_ROOT)
# What only bodies of `POST /v1/inference` can be.
NOT_OF_PREVIEWS = (errors.BodyInvalid, errors.PresetNotFound, errors.PresetBroken, errors.MoeFormatNotSupported)
PREVIEW_ERRORS = (
    errors.PreviewsImpossible,
    errors.UploadQuotaExceeded,
    *(error for error in SUBMIT_ERRORS if error not in NOT_OF_PREVIEWS),
)

JobNamePath = Annotated[
    Text, Path(description="The name of the training job: its folder's path below the LoRA root, with slashes.")
]


def check_job(request: Request, caller: CallerOfRequest) -> None:
    """A dependency: raise TrainingJobNotFound if the path names a training job that the caller does not see."""
    name = request.path_params.get("name")
    if name is not None and not caller.may_see_training_job(name):
        raise no_training_job(name)


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["training"], dependencies=[*KEYS_IN_DOCS, Depends(check_job)])
    # Names have slashes: the longer paths come first.
    _add_images(routes, service)
    _add_making(routes, service)
    _add_previews(routes, service)
    _add_jobs(routes, service)
    return routes


def _add_images(routes: APIRouter, service: Service) -> None:
    @routes.get(
        "/v1/training-jobs/{name:path}/samples/{file}",
        response_class=Response,
        responses=error_docs(
            errors.TrainingJobNotFound, errors.SampleNotFound, errors.LoraDownloadFailed, errors.Overloaded
        )
        | image_docs(["image/jpeg", "image/png", "image/webp"])
        | {304: {"description": "`If-None-Match` names the image's ETag"}},
    )
    async def get_sample_image(
        request: Request,
        name: JobNamePath,
        file: Annotated[Text, Path(description="The name of the file, as the job lists it.")],
        caller: CallerOfRequest,
        thumbnail: Annotated[bool, Query(description="Whether to send a JPEG of at most 300x300 pixels.")] = False,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """An image that the trainer made while it trained."""
        data, media_type, version = await service.training_jobs.image(name, file, caller, small=thumbnail)
        headers = {"ETag": f'"{version}"', "Cache-Control": "private, no-cache"}
        if names_etag(if_none_match or [], headers["ETag"]):
            return Response(status_code=304, headers=headers)
        return image_answer(request, data, media_type, headers)


def _add_making(routes: APIRouter, service: Service) -> None:
    LinksOfRequest = Depends(links_of(service))
    bodies = APIRouter(tags=routes.tags, dependencies=routes.dependencies, route_class=JsonRoute)

    @bodies.post(
        "/v1/training-jobs/{name:path}/previews",
        status_code=202,
        responses=error_docs(errors.TrainingJobNotFound, *PREVIEW_ERRORS),
    )
    async def make_previews(
        name: JobNamePath,
        body: PreviewsRequest,
        caller: CallerOfRequest,
        links: Annotated[Links, LinksOfRequest],
    ) -> PreviewsStarted:
        """Make the previews of a checkpoint again: one ordinary request per sample, as the trainer made it.

        Each has the trainer's own seed, size, flags and control images, and the profile of its version. A repeat with
        the same body has the same id and makes nothing again, except what has failed.
        """
        previews_id = await service.training_previews.start(name, body, caller, links.base_url)
        url = f"{job_url(name, links.base_url)}/previews/{previews_id}"
        return PreviewsStarted(id=previews_id, status_url=url)

    routes.routes.extend(bodies.routes)


def _add_previews(routes: APIRouter, service: Service) -> None:
    LinksOfRequest = Depends(links_of(service))

    @routes.get(
        "/v1/training-jobs/{name:path}/previews/{previews_id}",
        responses=error_docs(errors.PreviewsNotFound, errors.StoreUnavailable, *OF_JOB),
    )
    async def get_previews(
        name: JobNamePath,
        previews_id: Annotated[Text, Path(description="The id of the previews.")],
        caller: CallerOfRequest,
        links: Annotated[Links, LinksOfRequest],
    ) -> PreviewsStatus:
        """The trainer's images next to this service's, how far they are apart, and a summary in words."""
        return await service.training_pairs.status(name, previews_id, caller, links)


def _add_jobs(routes: APIRouter, service: Service) -> None:
    LinksOfRequest = Depends(links_of(service))

    @routes.get("/v1/training-jobs", responses=error_docs(*OF_ROOT))
    async def training_jobs(
        links: Annotated[Links, LinksOfRequest],
        caller: CallerOfRequest,
        search: Annotated[Url, Query(description="A text in the name or the trigger word, in any case.")] = "",
        cursor: Cursor = "",
        limit: Limit = DEFAULT_PAGE,
    ) -> TrainingJobList:
        """The training jobs that the caller sees: folders below the LoRA root that ai-toolkit wrote or still writes."""
        return await service.training_jobs.jobs(search, cursor, limit, links.base_url, caller)

    @routes.get("/v1/training-jobs/{name:path}", responses=error_docs(*OF_JOB))
    async def training_job(
        name: JobNamePath, caller: CallerOfRequest, links: Annotated[Links, LinksOfRequest]
    ) -> TrainingJobInfo:
        """One training job: its checkpoints, its sample images, and its sample settings as requests."""
        return await service.training_jobs.job(name, links.base_url, caller)
