"""Routes that list the models and the LoRA files."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from serve_app.api.caller import KEYS_IN_DOCS
from serve_app.api.error_answers import error_docs
from serve_app.errors import LoraDownloadFailed, LoraUnknown, Overloaded, StorageFailed
from serve_app.intake.service import Service
from serve_app.schemas.answers import LoraInfo, LoraList, ModelInfo, ModelList
from serve_app.schemas.text import Text, Url

DEFAULT_PAGE, MAX_PAGE = 50, 500
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many entries a page has at most.")]
Cursor = Annotated[Url, Query(description="The `next_cursor` of the page before; empty for the first page.")]


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["models"], dependencies=KEYS_IN_DOCS)

    @routes.get("/v1/models")
    async def models() -> ModelList:
        """The models that this service serves."""
        return ModelList(
            models=[ModelInfo.model_validate(spec, from_attributes=True) for spec in service.catalogue.models()]
        )

    @routes.get("/v1/loras", responses=error_docs(Overloaded, StorageFailed))
    async def loras(
        search: Annotated[
            Url, Query(description="A text in the path, the trigger word or the kind, in any case.")
        ] = "",
        cursor: Cursor = "",
        limit: Limit = DEFAULT_PAGE,
    ) -> LoraList:
        """The files under the LoRA root with what their headers say."""
        return await service.catalogue.loras(search, cursor, limit)

    @routes.get("/v1/loras/{path:path}", responses=error_docs(LoraUnknown, LoraDownloadFailed, Overloaded))
    async def lora(path: Annotated[Text, Path(description="The path below the LoRA root.")]) -> LoraInfo:
        """One file under the LoRA root."""
        return await service.catalogue.lora(path)

    return routes
