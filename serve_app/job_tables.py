"""The tables of the job store, and how a connection to SQLite has to be set up for it."""

from typing import Any

import sqlalchemy as sa

from serve_app.tasks import Status

metadata = sa.MetaData()

requests = sa.Table(
    "requests",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("notes", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
)

images = sa.Table(
    "images",
    metadata,
    sa.Column("request_id", sa.ForeignKey("requests.id"), primary_key=True),
    sa.Column("image_index", sa.Integer, primary_key=True),
    sa.Column("plan", sa.JSON, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("step", sa.Integer, nullable=False, default=0),
    sa.Column("steps", sa.Integer, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("result", sa.JSON),
    sa.Column("owner", sa.String(64)),
    sa.Column("generation", sa.Integer, nullable=False, default=0),
    sa.Column("lease_until", sa.Double),
    # What a claim looks for.
    sa.Index("images_by_status", "status", "lease_until", "created_at"),
)

# Seconds since the epoch by the database's own clock, to a millisecond. The statement's time in SQLite.
now = sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Double)


standing = (
    sa.select(
        requests.c.id,
        requests.c.status,
        requests.c.error,
        requests.c.created_at,
        requests.c.started_at,
        requests.c.finished_at,
        sa.func.sum(sa.case((images.c.status == Status.SUCCEEDED, 1), else_=0)),
        sa.func.count(),
        sa.func.sum(images.c.step),
        sa.func.sum(images.c.steps),
    )
    .join(images, images.c.request_id == requests.c.id)
    .where(requests.c.id == sa.bindparam("request_id"))
    .group_by(requests.c.id)
)


def configure_connection(connection: Any, _: Any) -> None:
    # The driver would begin transactions by itself, too late for the lock that a writer needs: see begin_writing.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    # A commit is on the disk when it returns: what was accepted survives a power cut.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA busy_timeout = 30000")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def begin_writing(connection: sa.Connection) -> None:
    # With the write lock from the start: a transaction that reads first and writes later fails at once
    # where another writer came between.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
