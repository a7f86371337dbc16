"""Routes for probes: whether the service is alive and ready. They need no key."""

from fastapi import APIRouter, Response

from serve_app.intake.service import Service
from serve_app.schemas.probes import BrokenPreset, EditorStart, Health, Readiness


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["operation"])

    @routes.get("/health")
    async def health() -> Health:
        """Whether this process answers."""
        return Health()

    @routes.get("/ready", responses={503: {"model": Readiness}})
    async def ready(response: Response) -> Readiness:
        """Whether each configured model has a running editor, or is scaled to zero; otherwise 503.

        A tier with editors of its own counts like a model, as `<model id>-<tier>`.

        An editor that starts reports how far it is: `editors` has the bytes of its checkpoint that it has read.

        Presets that requests cannot use are named, and do not make the service unready.
        """
        waiting_for = await service.workload.groups_without_editor()
        response.status_code = 503 if waiting_for else 200
        broken = [
            BrokenPreset(name=known.name, code=known.problem.code, message=known.problem.message)
            for known in service.presets.broken()
            if known.problem is not None
        ]
        starting = {
            group: EditorStart(**progress._asdict())
            for group, progress in (await service.starts.progress(waiting_for)).items()
        }
        return Readiness(ready=not waiting_for, waiting_for=waiting_for, broken_presets=broken, editors=starting)

    return routes
