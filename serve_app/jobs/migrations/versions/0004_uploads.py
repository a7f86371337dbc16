"""Uploads: control images that tenants send ahead of their requests.

Safe next to the version before: it does not know the table. While a sweeper of that version has the duty, it deletes
the file of an upload that is older than an hour and that no request refers to; its sender has to upload it again.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "uploads",
        sa.Column("tenant", sa.String(length=100), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "sha256"),
    )
    op.create_index("uploads_by_file", "uploads", ["key"])
    op.create_index("uploads_by_end", "uploads", ["expires_at"])
