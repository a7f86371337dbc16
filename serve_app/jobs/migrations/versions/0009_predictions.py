"""How long each request was predicted to take when it was accepted.

Safe next to the version before: it predicts nothing, and its requests are not counted.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("requests", sa.Column("predicted_s", sa.Double(), nullable=True))
