"""Tenants: who a caller is, and what its tenant may have. `keys` finds out which tenant calls.

A new limit is a field of `TenantLimits` and of `config/limits.py`, and a check in `jobs/limits/quotas.py` or in
`intake/submission.py`.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum

from serve_app.config import IngressSettings, JobsConfig, LimitsConfig
from serve_app.intake.callers.allowed import Allowed
from serve_app.jobs.limits.quotas import Quotas


class Scope(StrEnum):
    """What a key is good for. `api/scopes.py` says which routes need which."""

    # Send requests, sweeps and uploads, and cancel them.
    SUBMIT = "submit"
    # See what may be named in requests, and what became of requests.
    READ = "read"
    # Delete for good.
    OPERATE = "operate"


ALL_SCOPES = frozenset(Scope)


@dataclass(frozen=True)
class TenantLimits:
    """What one tenant may have and do. None: as much as the whole service.

    The fields are those of `LimitsConfig`, which describes them.
    """

    max_queued: int | None = None
    max_upload_bytes: int | None = None
    submits_per_minute: int | None = None
    reads_per_minute: int | None = None
    max_unfinished: int | None = None
    gpu_seconds_per_day: float | None = None
    sweep_cells_per_day: int | None = None
    max_stored_bytes: int | None = None

    def replaced_by(self, limits: LimitsConfig) -> "TenantLimits":
        """These limits, except where `limits` has one."""
        return replace(self, **limits.model_dump(exclude_none=True))

    @property
    def quotas(self) -> Quotas:
        """The limits that the job database knows."""
        return Quotas(self.max_unfinished, self.gpu_seconds_per_day, self.sweep_cells_per_day, self.max_stored_bytes)

    @property
    def of_operators(self) -> "TenantLimits":
        """What operators are held to: only the size of the queue and of uploads."""
        return TenantLimits(self.max_queued, self.max_upload_bytes)


NO_LIMITS = TenantLimits()


def tenant_limits(config: JobsConfig, settings: IngressSettings) -> TenantLimits:
    """The limits of every tenant: those of `config`, unless `settings`, which change in place, say otherwise."""
    limits = TenantLimits(
        max_queued=settings.max_queued_per_tenant or config.max_queued_per_tenant,
        max_upload_bytes=config.max_upload_bytes_per_tenant,
    )
    return limits.replaced_by(settings.limits)


@dataclass(frozen=True)
class Caller:
    """Who sends a request, and what its tenant may have.

    An operator sees every tenant's requests; its own belong to the tenant "", as all requests do without API keys.
    Whoever has a key sees the history of its tenant; without API keys, `sees_history` says who does.

    `allowed` is what the tenant may use; None for everything. `key_id` is the beginning of the hash of the key (hex),
    for logs.
    """

    tenant: str = ""
    is_operator: bool = False
    has_key: bool = False
    sees_history: bool = False
    limits: TenantLimits = NO_LIMITS
    scopes: frozenset[Scope] = ALL_SCOPES
    allowed: Allowed | None = None
    key_id: str = field(default="", compare=False)

    @property
    def may_list(self) -> bool:
        """Whether the caller sees a history: its own, or for an operator that of all."""
        return self.has_key or self.sees_history

    def may_use_lora(self, path: str) -> bool:
        """Whether a request of the caller may use the LoRA that it names so: a path below the LoRA root, or a URL."""
        return self.allowed is None or self.allowed.lora(path)

    def may_see_training_job(self, name: str) -> bool:
        return self.allowed is None or self.allowed.training_job(name)
