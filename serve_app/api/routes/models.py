"""Routes that list the models, the presets and the LoRA files."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from serve_app.api.caller import KEYS_IN_DOCS, CallerOfRequest
from serve_app.api.error_answers import error_docs
from serve_app.errors import LoraDownloadFailed, LoraUnknown, Overloaded, StorageFailed
from serve_app.intake.answers.bodies import model_info, openai_models, preset_of
from serve_app.intake.service import Service
from serve_app.schemas.catalogue import LoraInfo, LoraList, ModelList, PresetList
from serve_app.schemas.text import Text, Url

DEFAULT_PAGE, MAX_PAGE = 50, 500
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many entries a page has at most.")]
Cursor = Annotated[Url, Query(description="The `next_cursor` of the page before; empty for the first page.")]


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["models"], dependencies=KEYS_IN_DOCS)

    @routes.get("/v1/models")
    async def models(caller: CallerOfRequest) -> ModelList:
        """The models that this service serves, and under `data`, as OpenAI's clients expect it, also the presets."""
        served, presets = service.catalogue.models(), service.presets.visible_to(caller)
        return ModelList(
            models=[model_info(spec, service.config) for spec in served],
            data=openai_models(served, presets),
        )

    @routes.get("/v1/presets")
    async def presets(caller: CallerOfRequest) -> PresetList:
        """The presets that the caller may name in a request, with the fields that they set."""
        visible = service.presets.visible_to(caller)
        return PresetList(presets=[preset_of(known) for known in visible if known.template is not None])

    @routes.get("/v1/loras", responses=error_docs(Overloaded, StorageFailed))
    async def loras(
        caller: CallerOfRequest,
        search: Annotated[
            Url, Query(description="A text in the path, the trigger word or the kind, in any case.")
        ] = "",
        cursor: Cursor = "",
        limit: Limit = DEFAULT_PAGE,
    ) -> LoraList:
        """The files under the LoRA root that the caller may use, with what their headers say."""
        return await service.catalogue.loras(search, cursor, limit, caller)

    @routes.get("/v1/loras/{path:path}", responses=error_docs(LoraUnknown, LoraDownloadFailed, Overloaded))
    async def lora(
        path: Annotated[Text, Path(description="The path below the LoRA root.")], caller: CallerOfRequest
    ) -> LoraInfo:
        """One file under the LoRA root."""
        return await service.catalogue.lora(path, caller)

    return routes
