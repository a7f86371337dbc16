"""Measured losses in the job database of a test."""

from serve_app.jobs import tables
from serve_app.jobs.store import JobStore


async def current_since(store: JobStore, seconds: float) -> None:
    """Let all losses be marked `seconds` ago."""
    async with store._database.writing() as connection:
        await connection.execute(tables.calibrations.update().values(current_at=tables.now() - seconds))
