"""Routes for probes: whether the service is alive and ready. They need no key."""

from fastapi import APIRouter, Response

from serve_app.intake.service import Service
from serve_app.schemas.answers import Health, Readiness


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["operation"])

    @routes.get("/health")
    async def health() -> Health:
        """Whether this process answers."""
        return Health()

    @routes.get("/ready", responses={503: {"model": Readiness}})
    async def ready(response: Response) -> Readiness:
        """Whether each configured model has a running editor, or is scaled to zero; otherwise 503."""
        waiting_for = await service.workload.models_without_editor()
        response.status_code = 503 if waiting_for else 200
        return Readiness(ready=not waiting_for, waiting_for=waiting_for)

    return routes
