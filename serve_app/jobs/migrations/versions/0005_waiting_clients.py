"""Requests remember the call that asked for them, and whether a client still waits for them.

Safe next to the version before: its requests have no call, and nobody is recorded as waiting for them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("requests", sa.Column("call_sha256", sa.String(length=64), nullable=True))
    op.add_column("requests", sa.Column("attachments", sa.Integer(), server_default="0", nullable=False))
    op.add_column("requests", sa.Column("departed", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("requests", sa.Column("abandoned_at", sa.Double(), nullable=True))
    op.create_index("requests_by_call", "requests", ["tenant", "call_sha256", "created_at"], unique=False)
    op.create_index("requests_by_abandonment", "requests", ["abandoned_at"], unique=False)
