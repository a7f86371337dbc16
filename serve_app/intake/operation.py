"""The operation of the service as one caller may see it: models, editors, queues, and requests that failed."""

import time
from importlib.metadata import PackageNotFoundError, version

from serve_app.intake.tenants import Caller
from serve_app.intake.workload import Workload
from serve_app.jobs.records import HistoryFilter, Summary
from serve_app.jobs.store import JobStore
from serve_app.policy.scaling import Backlog
from serve_app.schemas.operation import ModelOperation, OperationLinks, OperationStatus, RecentError
from serve_app.tasks import Status

# The name under which this service is installed.
DISTRIBUTION = "serve-app"
# How many failed requests are listed at most, and how old their requests may be (s): no index finds failures, so the
# database looks at each request of this time.
MAX_RECENT_ERRORS, RECENT_S = 20, 86400.0


class Operation:
    """Answers how the service is doing. A tenant sees its own images and failures, an operator sees all."""

    def __init__(self, store: JobStore, workload: Workload) -> None:
        self._store = store
        self._workload = workload
        self._version = installed_version()

    async def status(self, caller: Caller, base_url: str) -> OperationStatus:
        """What the caller may know. `base_url` is the start of the links. Raises StoreUnavailable."""
        models = await self._models(caller)
        return OperationStatus(
            version=self._version,
            models=models,
            waiting=sum(model.waiting for model in models),
            working=sum(model.working for model in models),
            recent_errors=await self._recent_errors(caller),
            sees_history=caller.may_list,
            links=OperationLinks(
                docs=f"{base_url}/docs",
                reference=f"{base_url}/redoc",
                openapi=f"{base_url}/openapi.json",
                history=f"{base_url}/v1/requests",
            ),
        )

    async def _models(self, caller: Caller) -> list[ModelOperation]:
        running, starting = await self._workload.editor_counts(), self._workload.editors_starting()
        backlogs = await self._workload.backlogs()
        measured = await self._store.queue.measured_groups()
        counts = await self._store.queue.counts(None if caller.is_operator else caller.tenant)
        models = []
        for group, editors in running.items():
            waiting, working = counts.get(group, (0, 0))
            model, tier = self._workload.model_and_tier(group)
            models.append(
                ModelOperation(
                    id=group,
                    model=model,
                    tier=tier,
                    editors_running=editors,
                    editors_starting=starting.get(group, 0),
                    waiting=waiting,
                    working=working,
                    predicted_wait_s=wait_s(backlogs[group], editors) if group in measured else None,
                )
            )
        return models

    async def _recent_errors(self, caller: Caller) -> list[RecentError]:
        if not caller.may_list:
            return []
        tenant = None if caller.is_operator else caller.tenant
        failed = HistoryFilter(tenant=tenant, status=Status.FAILED, since=time.time() - RECENT_S)
        return [_error_of(row) for row in await self._store.requests.history(failed, None, MAX_RECENT_ERRORS)]


def installed_version() -> str:
    """The version of the service; "0" if it runs from a folder without being installed."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "0"


def wait_s(backlog: Backlog, editors: int) -> float | None:
    """Predicted seconds until one of `editors` begins an image that is sent now; None without an editor."""
    if not editors:
        return None
    if backlog.images < editors:
        return 0.0
    return round(backlog.work_s / editors, 1)


def _error_of(row: Summary) -> RecentError:
    return RecentError(
        request_id=row.request_id,
        tenant=row.tenant,
        model=row.model,
        at=row.finished_at or row.created_at,
        code=row.error_code,
        message=row.error,
        details=row.error_details,
    )
