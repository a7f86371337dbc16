"""When each measured loss last held for the service as it was then.

Safe next to the version before: it writes losses without this time. They count as current from the next sweep on.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column("calibrations", sa.Column("current_at", sa.Double(), nullable=True))
