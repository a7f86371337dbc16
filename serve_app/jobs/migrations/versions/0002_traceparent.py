"""Requests remember the trace that they belong to.

Safe next to the previous version: it names the columns that it writes, and its own requests have no trace.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("requests", sa.Column("traceparent", sa.String(length=55), nullable=True))
