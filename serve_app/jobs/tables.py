"""The tables of the job store. `migrations/` creates them; a test checks that both agree."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles

from serve_app.tasks import Priority

metadata = sa.MetaData()


class now(sa.sql.functions.FunctionElement[float]):
    """The time of the statement by the database's clock: seconds since the epoch, to a millisecond or better."""

    type = sa.Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: Any, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: Any, **options: Any) -> str:
    return "CAST(extract(epoch FROM statement_timestamp()) AS double precision)"


class today(sa.sql.functions.FunctionElement[int]):
    """The UTC day of the statement by the database's clock: days since the epoch."""

    type = sa.Integer()
    inherit_cache = True


@compiles(today, "sqlite")
def _today_sqlite(element: today, compiler: Any, **options: Any) -> str:
    return "CAST(julianday('now') - 2440587.5 AS INTEGER)"


@compiles(today, "postgresql")
def _today_postgresql(element: today, compiler: Any, **options: Any) -> str:
    return "CAST(floor(extract(epoch FROM statement_timestamp()) / 86400) AS integer)"


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
    # Increases with each change that clients can see. Used as the id of events.
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
    # A `WebhookTarget`: {"url", "events", "base_url"}.
    sa.Column("webhook", sa.JSON(none_as_null=True)),
    sa.Column("purged", sa.Boolean, nullable=False),
    # The span of the POST (W3C Trace Context). Processes that work on the request continue its trace.
    sa.Column("traceparent", sa.String(55)),
    # The code and details of the first failed image, in prompt order.
    sa.Column("error_code", sa.String(64)),
    sa.Column("error_details", sa.JSON(none_as_null=True)),
    # The size of its plans and results as JSON (bytes), which counts for `keep_bytes`. Null in rows of old versions.
    sa.Column("row_bytes", sa.BigInteger),
    # The digest of the HTTP call that asked for it, if its client repeats calls: by it a repeat finds the request.
    sa.Column("call_sha256", sa.String(64)),
    # How many repeats of the call were attached to it, and the numbers of its clients that no longer wait for it.
    sa.Column("attachments", sa.Integer, nullable=False, server_default="0"),
    sa.Column("departed", sa.JSON(none_as_null=True)),
    # When the last of its clients hung up. Null while one waits, and for requests that nobody ever waited for.
    sa.Column("abandoned_at", sa.Double),
    # How long it was predicted to take when it was accepted (s); null where nothing could be predicted.
    sa.Column("predicted_s", sa.Double),
    sa.UniqueConstraint("tenant", "idempotency_key", name="requests_by_idempotency_key"),
    # For the history, newest first.
    sa.Index("requests_by_time", "created_at", "id"),
    sa.Index("requests_by_tenant", "tenant", "created_at", "id"),
    # For requests that are past their deadline, and past their retention.
    sa.Index("requests_by_deadline", "status", "deadline_at"),
    sa.Index("requests_by_end", "finished_at"),
    sa.Index("requests_by_call", "tenant", "call_sha256", "created_at"),
    sa.Index("requests_by_abandonment", "abandoned_at"),
)

images = sa.Table(
    "images",
    metadata,
    _of_request(primary_key=True),
    sa.Column("image_index", sa.Integer, primary_key=True, autoincrement=False),
    # The editors that can make it: see `config.editor_group`. The column is named as in versions that had one group per
    # model, whose processes claim nothing of other groups.
    sa.Column("model", sa.String(100), key="editor_group", nullable=False),
    # Copied from the request, so that claiming reads only this table.
    sa.Column("tenant", sa.String(100), nullable=False),
    sa.Column("priority", sa.String(16), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("plan", sa.JSON, nullable=False),
    # The predicted work (FLOP).
    sa.Column("work", sa.Double, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    # waiting, claimed or ended (see state_changes.py). `status` is what clients see.
    sa.Column("state", sa.String(8), nullable=False),
    # Its place among the images of its priority: see policy/fair_queue.py.
    sa.Column("turn", sa.BigInteger, nullable=False),
    # How each lost attempt ended.
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
    # The stage of a claimed image: see `tasks.ImageStage`.
    sa.Column("stage", sa.String(16)),
    # The queue in its order, with the columns that queue positions and predictions need.
    sa.Index("images_in_line", "editor_group", "state", "priority", "turn", "created_at", "work"),
    sa.Index("images_of_tenant_in_line", "state", "tenant"),
    sa.Index("turns_of_tenant", "editor_group", "priority", "tenant", "turn"),
    sa.Index("images_by_owner", "owner"),
)

# The queue of each editor group. A transaction that changes the order of a queue locks its row.
queues = sa.Table(
    "lines",
    metadata,
    sa.Column("model", sa.String(100), key="editor_group", primary_key=True),
    # The turn of the last claimed image, by priority.
    *(sa.Column(f"{priority}_turn", sa.BigInteger, nullable=False, server_default="0") for priority in Priority),
    # How many interactive images were claimed since the last bulk image, while bulk images waited.
    sa.Column("passed_over", sa.Integer, nullable=False, server_default="0"),
)

# The measured speed of the edits of each editor group (FLOP/s of predicted work).
speeds = sa.Table(
    "speeds",
    metadata,
    sa.Column("model", sa.String(100), key="editor_group", primary_key=True),
    sa.Column("flops_per_s", sa.Double, nullable=False),
    # The share of an edit's time (0 to 1) that is not spent on denoising steps: mostly decoding and storing.
    sa.Column("other_share", sa.Double),
)

request_loras = sa.Table(
    "request_loras",
    metadata,
    _of_request(primary_key=True),
    sa.Column("path", sa.String(500), primary_key=True),
    sa.Index("requests_by_lora", "path"),
)

# The artifacts that each request needs. The sweeper deletes artifacts that no row names.
request_files = sa.Table(
    "request_files",
    metadata,
    _of_request(primary_key=True),
    sa.Column("key", sa.String(200), primary_key=True),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Index("requests_by_file", "key"),
)

# Control images that tenants have sent ahead of their requests. A row keeps its file until it expires, and expired rows
# count for nothing.
uploads = sa.Table(
    "uploads",
    metadata,
    sa.Column("tenant", sa.String(100), primary_key=True),
    # The digest of the file (hex), which is the upload's id.
    sa.Column("sha256", sa.String(64), primary_key=True),
    # The artifact.
    sa.Column("key", sa.String(200), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    # The `ImageFacts` with `exif: ignore` and with `exif: apply`.
    sa.Column("facts", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Index("uploads_by_file", "key"),
    sa.Index("uploads_by_end", "expires_at"),
)

# Sweeps: the cells of a grid, each of which becomes an ordinary request.
sweeps = sa.Table(
    "sweeps",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("tenant", sa.String(100), nullable=False),
    sa.Column("model", sa.String(100), nullable=False),
    # A `SweepDefinition`: the base and the axes.
    sa.Column("definition", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    # When the sweep itself was last changed: created, extended, cancelled, resumed.
    sa.Column("changed_at", sa.Double, nullable=False),
    # When its last cell was found to have ended; null while one has not.
    sa.Column("ended_at", sa.Double),
    sa.Column("canceled", sa.Boolean, nullable=False),
    # Whether its images and control images were deleted. Then it cannot go on.
    sa.Column("purged", sa.Boolean, nullable=False),
    sa.Column("deadline_s", sa.Double, nullable=False),
    sa.Column("webhook", sa.JSON(none_as_null=True)),
    sa.Column("traceparent", sa.String(55)),
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("body_sha256", sa.String(64)),
    sa.UniqueConstraint("tenant", "idempotency_key", name="sweeps_by_idempotency_key"),
    sa.Index("sweeps_by_time", "tenant", "created_at", "id"),
    sa.Index("sweeps_by_end", "ended_at"),
)


def _of_sweep() -> sa.Column[str]:
    reference = sa.ForeignKey("sweeps.id", ondelete="CASCADE")
    return sa.Column("sweep_id", sa.String(32), reference, primary_key=True, nullable=False)


sweep_cells = sa.Table(
    "sweep_cells",
    metadata,
    _of_sweep(),
    # Its place in the order in which cells are made.
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    # The index of its value on each axis, null where it has none: see `policy.sweep_order.Place`.
    sa.Column("place", sa.JSON, nullable=False),
    # Derived from sweep, place and attempt, so that no cell becomes two requests. Its request may have been deleted.
    sa.Column("request_id", sa.String(32), nullable=False),
    # How often it was made anew after it had failed or was cancelled.
    sa.Column("attempt", sa.Integer, nullable=False),
    # Whether its request has been put into the queue.
    sa.Column("submitted", sa.Boolean, nullable=False),
    sa.Column("plan", sa.JSON, nullable=False),
    # The predicted work (FLOP).
    sa.Column("work", sa.Double, nullable=False),
    # The files that its request needs, with their sizes (bytes).
    sa.Column("files", sa.JSON, nullable=False),
    # What was measured on its image: see `sweeps.records.Measures`.
    sa.Column("measures", sa.JSON(none_as_null=True)),
    sa.Index("cells_by_request", "request_id"),
    sa.Index("cells_to_submit", "submitted", "sweep_id", "number"),
)

# The artifacts that the cells of a sweep need, also those that are not requests yet.
sweep_files = sa.Table(
    "sweep_files",
    metadata,
    _of_sweep(),
    sa.Column("key", sa.String(200), primary_key=True),
    sa.Index("sweeps_by_file", "key"),
)

# The measured loss of each tier, per model, settings of the tier, checkpoint and set of adapters: see `calibrations`.
calibrations = sa.Table(
    "calibrations",
    metadata,
    sa.Column("model", sa.String(100), primary_key=True),
    sa.Column("tier", sa.String(16), primary_key=True),
    # Digests (hex) of the tier's settings, of the checkpoint's name, and of the ids of the adapters.
    sa.Column("settings", sa.String(64), primary_key=True),
    sa.Column("checkpoint", sa.String(64), primary_key=True),
    sa.Column("adapters", sa.String(64), primary_key=True),
    # A digest of samples of the checkpoint's files; null where they were not at hand.
    sa.Column("content", sa.String(64)),
    # A `Loss`.
    sa.Column("loss", sa.JSON, nullable=False),
    # What the digests stand for, for people.
    sa.Column("details", sa.JSON, nullable=False),
    sa.Column("measured_at", sa.Double, nullable=False),
    # When it was last known to hold for the tier, the checkpoint and the adapters as they were then. Null: not known.
    sa.Column("current_at", sa.Double),
)

# Calibrations that go through the queue: the requests of each, and when it ended.
calibration_runs = sa.Table(
    "calibration_runs",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("tenant", sa.String(100), nullable=False),
    sa.Column("model", sa.String(100), nullable=False),
    # The `Comparison`s that it makes.
    sa.Column("comparisons", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("ended_at", sa.Double),
    # Why it could not measure everything.
    sa.Column("problem", sa.Text),
    # Until then its requests may still be submitted. Null once they all are.
    sa.Column("submitting_until", sa.Double),
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("body_sha256", sa.String(64)),
    sa.Index("calibration_runs_by_end", "ended_at"),
    sa.Index("calibration_runs_by_idempotency_key", "tenant", "idempotency_key", unique=True),
)

# What each tenant has used. These rows stay when the requests are deleted.
usage = sa.Table(
    "usage",
    metadata,
    sa.Column("tenant", sa.String(100), primary_key=True),
    sa.Column("gpu_seconds", sa.Double, nullable=False),
    sa.Column("images", sa.BigInteger, nullable=False),
)

# What each tenant has used per UTC day (days since the epoch), for quotas.
daily_usage = sa.Table(
    "daily_usage",
    metadata,
    sa.Column("tenant", sa.String(100), primary_key=True),
    sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("gpu_seconds", sa.Double, nullable=False),
    sa.Column("sweep_cells", sa.BigInteger, nullable=False),
)

# How many requests ingresses have taken from a tenant's rate of each kind lately: see `limits.rates.Slots`.
rates = sa.Table(
    "rates",
    metadata,
    sa.Column("tenant", sa.String(100), primary_key=True),
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("slots", sa.JSON, nullable=False),
)

# Webhooks to be posted. They are written in the same transaction as the change that they report.
deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    _of_request(),
    sa.Column("event", sa.String(32), nullable=False),
    sa.Column("image_index", sa.Integer),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    # The time of the next attempt, null after the last one. A process postpones it before it makes an attempt.
    sa.Column("due_at", sa.Double),
    sa.Column("delivered_at", sa.Double),
    sa.Column("error", sa.Text),
    sa.Index("deliveries_due", "due_at"),
    sa.Index("deliveries_of_request", "request_id"),
)

# Duties: work that one process at a time does for all. `owner` has the duty until the time `until`.
duties = sa.Table(
    "duties",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("until", sa.Double, nullable=False),
)
