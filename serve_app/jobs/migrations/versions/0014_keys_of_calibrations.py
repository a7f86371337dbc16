"""Idempotency keys of calibrations.

Safe next to the version before: it writes calibrations without a key, of which there may be any number.
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.add_column("calibration_runs", sa.Column("idempotency_key", sa.String(length=255), nullable=True))
    op.add_column("calibration_runs", sa.Column("body_sha256", sa.String(length=64), nullable=True))
    op.create_index(
        "calibration_runs_by_idempotency_key", "calibration_runs", ["tenant", "idempotency_key"], unique=True
    )
