"""Where jobs are stored, how long they may take, how many may wait, and how long they are kept."""

from pydantic import Field, PositiveFloat, PositiveInt

from serve_app.config.environment import Url
from serve_app.config.section import ConfigSection

SQLITE_PREFIX = "sqlite+aiosqlite:///"
DAY_S = 86400.0


class JobsConfig(ConfigSection):
    """Where jobs are stored, how long they may take, how many may wait, and how long they are kept."""

    database_url: Url = Field(
        SQLITE_PREFIX + "data/jobs.sqlite3",
        # It may contain a password.
        repr=False,
        description="The job database: `sqlite+aiosqlite:///PATH` on one machine, or "
        "`postgresql+asyncpg://USER:${PASSWORD}@HOST/NAME`, with `?sslmode=verify-full&sslrootcert=FILE` for TLS.",
    )
    deadline_s: PositiveFloat = Field(
        DAY_S, description="Time from the POST of a request to its end, waiting included, unless the request sets one."
    )
    lease_s: PositiveFloat = Field(
        10.0, description="A dispatcher that does not renew its lease for this long loses the images that it claimed."
    )
    stall_s: PositiveFloat = Field(
        600.0,
        description="An edit that makes no step for this long is stopped and tried again. Replicas have twice this "
        "time to finish their edits before they shut down.",
    )
    # Editors report every 2 s: `ALIVE_S` in replicas/edit_progress.py.
    silence_s: float = Field(
        30.0,
        ge=6.0,
        description="An edit about which its editor reports nothing for this long is stopped and tried again.",
    )
    max_attempts: PositiveInt = Field(3, description="Maximum number of attempts at each image.")
    max_queued_per_tenant: PositiveInt = Field(5_000, description="Maximum number of waiting images of one tenant.")
    max_queued: PositiveInt = Field(20_000, description="Maximum number of waiting images of all tenants.")
    keep_s: PositiveFloat = Field(30 * DAY_S, description="A request is deleted this long after its end.")
    keep_bytes: PositiveInt = Field(
        100 * 2**30,
        description="Maximum size of the files and rows of all requests. The oldest finished requests beyond it are "
        "deleted.",
    )
    upload_keep_s: PositiveFloat = Field(
        DAY_S,
        description="An upload is deleted this long after it was last sent, unless a stored request refers to it.",
    )
    max_upload_bytes_per_tenant: PositiveInt = Field(
        2 * 2**30, description="Maximum size of the uploads of one tenant that have not expired."
    )
    loss_keep_s: float = Field(
        90 * DAY_S,
        ge=DAY_S,
        description="A measured loss is deleted when it has not held for this long, because the tier's settings, the "
        "checkpoint or the files of its LoRAs are others now. The loss of a LoRA at a URL is deleted when no request "
        "has used it for this long.",
    )
    sweep_s: PositiveFloat = Field(600.0, description="How often the service looks for requests to delete.")
