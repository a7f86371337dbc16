"""The tables of the job store. `migrations/` makes them; a test holds the two together."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles

from serve_app.tasks import Priority

metadata = sa.MetaData()


class now(sa.sql.functions.FunctionElement[float]):
    """Seconds since the epoch by the database's own clock, to a millisecond or better; the statement's time."""

    type = sa.Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: Any, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: Any, **options: Any) -> str:
    return "CAST(extract(epoch FROM statement_timestamp()) AS double precision)"


def _of_request(*, primary_key: bool = False) -> sa.Column[str]:
    reference = sa.ForeignKey("requests.id", ondelete="CASCADE")
    return sa.Column("request_id", sa.String(32), reference, primary_key=primary_key, nullable=False)


requests = sa.Table(
    "requests",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("tenant", sa.String(100), nullable=False),
    sa.Column("model", sa.String(100), nullable=False),
    sa.Column("priority", sa.String(16), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    # Grows with every change that a watcher may see: an event's id.
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("started_version", sa.Integer),
    sa.Column("error", sa.Text),
    sa.Column("notes", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("deadline_at", sa.Double, nullable=False),
    sa.Column("gpu_seconds", sa.Double, nullable=False),
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("body_sha256", sa.String(64)),
    # Who wants to be told what: {"url", "events", "base_url"}.
    sa.Column("webhook", sa.JSON(none_as_null=True)),
    sa.Column("purged", sa.Boolean, nullable=False),
    # The span that took it in, as W3C's Trace Context writes it: whoever works on it goes on with that trace.
    sa.Column("traceparent", sa.String(55)),
    # The code and details of `error`: those of the first image, in prompt order, that failed.
    sa.Column("error_code", sa.String(64)),
    sa.Column("error_details", sa.JSON(none_as_null=True)),
    # The JSON of its plans and results (bytes), as far as it was counted: part of what is kept.
    sa.Column("row_bytes", sa.BigInteger),
    sa.UniqueConstraint("tenant", "idempotency_key", name="requests_by_idempotency_key"),
    # History, newest first.
    sa.Index("requests_by_time", "created_at", "id"),
    sa.Index("requests_by_tenant", "tenant", "created_at", "id"),
    # Those past their deadline, and those past their retention.
    sa.Index("requests_by_deadline", "status", "deadline_at"),
    sa.Index("requests_by_end", "finished_at"),
)

images = sa.Table(
    "images",
    metadata,
    _of_request(primary_key=True),
    sa.Column("image_index", sa.Integer, primary_key=True, autoincrement=False),
    # The request's own, where a claim looks for them.
    sa.Column("model", sa.String(100), nullable=False),
    sa.Column("tenant", sa.String(100), nullable=False),
    sa.Column("priority", sa.String(16), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("plan", sa.JSON, nullable=False),
    # What it is predicted to take (FLOP).
    sa.Column("work", sa.Double, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    # A unit of work: waiting, claimed or ended. `status` is what clients see of it.
    sa.Column("state", sa.String(8), nullable=False),
    # Its place in its class of the queue: see turns.py.
    sa.Column("turn", sa.BigInteger, nullable=False),
    # How each attempt that was lost ended.
    sa.Column("reasons", sa.JSON, nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("steps", sa.Integer, nullable=False),
    # The request's version at this image's last change.
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("result", sa.JSON(none_as_null=True)),
    sa.Column("owner", sa.String(128)),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("lease_until", sa.Double),
    sa.Column("error_code", sa.String(64)),
    sa.Column("error_details", sa.JSON(none_as_null=True)),
    # What is being done for a claimed image: see `tasks.ImageStage`.
    sa.Column("stage", sa.String(16)),
    # The queue in its order, with what a position and a prediction need.
    sa.Index("images_in_line", "model", "state", "priority", "turn", "created_at", "work"),
    sa.Index("images_of_tenant_in_line", "state", "tenant"),
    sa.Index("turns_of_tenant", "model", "priority", "tenant", "turn"),
    sa.Index("images_by_owner", "owner"),
)

# One row a model: whoever changes the queue's order holds it.
lines = sa.Table(
    "lines",
    metadata,
    sa.Column("model", sa.String(100), primary_key=True),
    # The turn of the last image that was taken, by class.
    *(sa.Column(f"{priority}_turn", sa.BigInteger, nullable=False, server_default="0") for priority in Priority),
    # How many interactive images were taken since one of the waiting bulk was.
    sa.Column("passed_over", sa.Integer, nullable=False, server_default="0"),
)

# How fast a model's edits were seen to be made (FLOP/s of predicted work).
speeds = sa.Table(
    "speeds",
    metadata,
    sa.Column("model", sa.String(100), primary_key=True),
    sa.Column("flops_per_s", sa.Double, nullable=False),
    # The part of an edit's time that is not spent on denoising steps: decoding and storing above all.
    sa.Column("other_share", sa.Double),
)

request_loras = sa.Table(
    "request_loras",
    metadata,
    _of_request(primary_key=True),
    sa.Column("path", sa.String(500), primary_key=True),
    sa.Index("requests_by_lora", "path"),
)

# Which artifacts a request needs. One that no row names is nobody's.
request_files = sa.Table(
    "request_files",
    metadata,
    _of_request(primary_key=True),
    sa.Column("key", sa.String(200), primary_key=True),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Index("requests_by_file", "key"),
)

# What each tenant has used. Outlives its requests.
usage = sa.Table(
    "usage",
    metadata,
    sa.Column("tenant", sa.String(100), primary_key=True),
    sa.Column("gpu_seconds", sa.Double, nullable=False),
    sa.Column("images", sa.BigInteger, nullable=False),
)

# Webhooks to be delivered: written with the change that they tell of.
deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    _of_request(),
    sa.Column("event", sa.String(32), nullable=False),
    sa.Column("image_index", sa.Integer),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    # When it is to be tried next, null once it is done with; whoever tries it puts this off first.
    sa.Column("due_at", sa.Double),
    sa.Column("delivered_at", sa.Double),
    sa.Column("error", sa.Text),
    sa.Index("deliveries_due", "due_at"),
    sa.Index("deliveries_of_request", "request_id"),
)

# Work that one process at a time does for all: who, and until when.
duties = sa.Table(
    "duties",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("until", sa.Double, nullable=False),
)
