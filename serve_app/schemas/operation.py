"""The answer about the operation of the service: what works, what waits, and what went wrong."""

from pydantic import ConfigDict, Field

from serve_app.schemas.answers import REQUEST_ID, ErrorDetails, ModelId, Moment, RequestId
from serve_app.schemas.documented import Answer


class ModelOperation(Answer):
    """A model, or a tier of a model that has editors of its own: the editors and their queue."""

    id: str = Field(description="The name of the editors: the model's id, for a tier `<model id>-<tier>`.")
    model: ModelId
    tier: str | None = Field(description="The tier; null for the editors that make everything else.")
    editors_running: int = Field(description="Editors that take work.")
    editors_starting: int = Field(description="Editors that were ordered and do not take work yet.")
    waiting: int = Field(description="Images in the queue, of those requests that the caller may see.")
    working: int = Field(description="Images that editors work on, of those requests that the caller may see.")
    predicted_wait_s: float | None = Field(
        description="Predicted seconds until an editor would begin an image that is sent now, from measured edits and "
        "the queues of all tenants; null before the first edit of the model was measured, and while it has no editor."
    )


class RecentError(Answer):
    """A request that failed."""

    request_id: RequestId
    tenant: str = Field(description="The tenant whose request it was; empty for an operator's.")
    model: ModelId
    at: Moment = Field(description="When it failed.")
    code: str | None = Field(description="Why it failed, as a code; null if it failed before codes were recorded.")
    message: str | None = Field(description="Why it failed, in words.")
    details: ErrorDetails


class OperationLinks(Answer):
    """Pages and documents about this service."""

    docs: str = Field(description="The interactive documentation.")
    reference: str = Field(description="The same documentation, for reading.")
    openapi: str = Field(description="The OpenAPI document.")
    history: str = Field(description="The history of requests.")


class OperationStatus(Answer):
    """How the service is doing, as far as the caller may know."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "version": "0.2.0",
                    "models": [
                        {
                            "id": "qwen_image_edit",
                            "model": "qwen_image_edit",
                            "tier": None,
                            "editors_running": 1,
                            "editors_starting": 0,
                            "waiting": 3,
                            "working": 1,
                            "predicted_wait_s": 24.6,
                        }
                    ],
                    "waiting": 3,
                    "working": 1,
                    "recent_errors": [
                        {
                            "request_id": REQUEST_ID,
                            "tenant": "acme",
                            "model": "qwen_image_edit",
                            "at": "2026-11-23T09:00:09.250000Z",
                            "code": "OUT_OF_MEMORY",
                            "message": "this edit does not fit on the device",
                            "details": {"prompt_index": 0},
                        }
                    ],
                    "sees_history": True,
                    "links": {
                        "docs": "http://127.0.0.1:8000/docs",
                        "reference": "http://127.0.0.1:8000/redoc",
                        "openapi": "http://127.0.0.1:8000/openapi.json",
                        "history": "http://127.0.0.1:8000/v1/requests",
                    },
                }
            ]
        }
    )

    version: str = Field(description="The version of the service.")
    models: list[ModelOperation] = Field(description="The models, in the order of the config.")
    waiting: int = Field(description="Images in the queues of all models, of requests that the caller may see.")
    working: int = Field(description="Images that editors work on, of requests that the caller may see.")
    recent_errors: list[RecentError] = Field(
        description="The newest requests of the last day that failed, of those that the caller may see; empty if it "
        "sees no history."
    )
    sees_history: bool = Field(description="Whether the caller may read the history.")
    links: OperationLinks = Field(description="Where to read on.")
