"""What the audit log says about callers: which adapters they use, and everything that operators do."""

from collections.abc import Iterable

from serve_app.intake.tenants import Caller
from serve_app.tasks import AdapterUse
from serve_app.telemetry import audit


def record_adapters(caller: Caller, what: str, target: str, adapters: Iterable[tuple[AdapterUse, ...]]) -> None:
    """`what` with the id `target` was accepted, whose edits use these adapters. That of a tier is left out."""
    distinct = dict.fromkeys((use.id, use.path) for uses in adapters for use in uses if not use.of_tier)
    audit.record(
        what,
        tenant=tenant_of(caller),
        key=caller.key_id,
        target=target,
        outcome="accepted",
        adapters=[{"id": identity, "path": path} for identity, path in distinct],
    )


def record_call(caller: Caller, action: str, target: str, status: int) -> None:
    """An operator's HTTP request was answered with this status."""
    audit.record(action, tenant=tenant_of(caller), key=caller.key_id, target=target, outcome=str(status))


def tenant_of(caller: Caller) -> str | None:
    return None if caller.is_operator else caller.tenant
