"""Routes that list the models and the LoRA files."""

from typing import Annotated

from fastapi import APIRouter, Query

from serve_app.api.caller import KEYS_IN_DOCS
from serve_app.api.error_answers import error_docs
from serve_app.errors import HostNotAllowed, LoraUnknown, Unauthorized
from serve_app.intake.service import Service
from serve_app.schemas.answers import LoraInfo, LoraList, ModelInfo, ModelList
from serve_app.schemas.text import Text, Url

DEFAULT_PAGE, MAX_PAGE = 50, 500


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["models"], dependencies=KEYS_IN_DOCS, responses=error_docs(HostNotAllowed, Unauthorized))

    @routes.get("/v1/models")
    async def models() -> ModelList:
        """The models that this service serves."""
        return ModelList(
            models=[ModelInfo.model_validate(spec, from_attributes=True) for spec in service.catalogue.models()]
        )

    @routes.get("/v1/loras")
    async def loras(
        search: Url = "", cursor: Url = "", limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE
    ) -> LoraList:
        """The files under the LoRA root with what their headers say. `search` looks in path, trigger word and kind."""
        return await service.catalogue.loras(search, cursor, limit)

    @routes.get("/v1/loras/{path:path}", responses=error_docs(LoraUnknown))
    async def lora(path: Text) -> LoraInfo:
        """One file under the LoRA root."""
        return await service.catalogue.lora(path)

    return routes
