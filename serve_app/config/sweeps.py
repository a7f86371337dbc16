"""How large a sweep may be, and how long it is kept."""

from pydantic import Field, PositiveFloat, PositiveInt

from serve_app.config.jobs import DAY_S
from serve_app.config.section import ConfigSection


class SweepsConfig(ConfigSection):
    """How large a sweep may be, and how long it is kept."""

    max_cells: int = Field(1_000, gt=0, le=10_000, description="Maximum number of cells of one sweep.")
    max_waiting: PositiveInt = Field(
        100,
        description="How many cells of one sweep wait in the queue at most. The others are put into it as these are "
        "made.",
    )
    keep_s: PositiveFloat = Field(
        30 * DAY_S,
        description="A sweep is deleted with its requests this long after its last cell has ended. Until then "
        "`jobs.keep_s` does not apply to its requests, `jobs.keep_bytes` does.",
    )
