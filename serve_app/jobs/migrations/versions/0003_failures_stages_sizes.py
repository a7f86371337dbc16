"""Failures get a code and details, images a stage, requests the size of their rows, models a share of other work.

Safe next to the previous version: every column is nullable, and that version names the columns that it writes. Images
that it works on may keep a `stage` from this version, since it does not clear the column.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    for table in ("requests", "images"):
        op.add_column(table, sa.Column("error_code", sa.String(length=64), nullable=True))
        op.add_column(table, sa.Column("error_details", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("requests", sa.Column("row_bytes", sa.BigInteger(), nullable=True))
    op.add_column("images", sa.Column("stage", sa.String(length=16), nullable=True))
    op.add_column("speeds", sa.Column("other_share", sa.Double(), nullable=True))
