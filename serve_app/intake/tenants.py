"""Tenants: who a caller is, and what its tenant may have. `keys` finds out which tenant calls.

A new limit is a field of `TenantLimits`, a key in `config/jobs.py` (and in `config/user_config.py` if it changes in
place), and a check in `intake/submission.py` or `jobs/requests.py`.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from serve_app.config import IngressSettings, JobsConfig
from serve_app.intake.callers.allowed import Allowed


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
    """What one tenant may have at a time. None: as much as the whole service.

    `max_queued` is the number of its images that may wait in the queue, `max_upload_bytes` the size of its uploads.
    """

    max_queued: int | None = None
    max_upload_bytes: int | None = None


NO_LIMITS = TenantLimits()


def tenant_limits(config: JobsConfig, settings: IngressSettings) -> TenantLimits:
    """The limits of every tenant: those of `config`, unless `settings`, which change in place, say otherwise."""
    return TenantLimits(
        max_queued=settings.max_queued_per_tenant or config.max_queued_per_tenant,
        max_upload_bytes=config.max_upload_bytes_per_tenant,
    )


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
