"""Calibrations whose requests are still being submitted.

Safe next to the version before: it writes a calibration after its requests, which then are all submitted.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column("calibration_runs", sa.Column("submitting_until", sa.Double(), nullable=True))
