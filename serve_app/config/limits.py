"""What one tenant may have and do."""

from pydantic import Field, PositiveFloat, PositiveInt

from serve_app.config.section import ConfigSection


class LimitsConfig(ConfigSection):
    """What one tenant may have and do. Null: no limit of this kind, unless another setting has one.

    Under `limits` in the ingress' `user_config` they apply to every tenant, and under a tenant's `limits` in the keys
    file to that tenant instead.
    """

    submits_per_minute: PositiveInt | None = Field(
        None,
        description="Maximum number of HTTP requests per minute that make, change or delete something. Streams and "
        "polls do not count.",
    )
    reads_per_minute: PositiveInt | None = Field(
        None, description="Maximum number of other HTTP requests per minute. An event stream counts once."
    )
    max_unfinished: PositiveInt | None = Field(
        None, description="Maximum number of requests that have not ended. Cells of sweeps do not count."
    )
    max_queued: PositiveInt | None = Field(
        None, description="Maximum number of waiting images. Replaces `max_queued_per_tenant`."
    )
    max_upload_bytes: PositiveInt | None = Field(
        None, description="Maximum size of uploads. Replaces `jobs.max_upload_bytes_per_tenant`."
    )
    max_stored_bytes: PositiveInt | None = Field(
        None, description="Maximum size of the files and rows of the requests that are kept. Uploads do not count."
    )
    gpu_seconds_per_day: PositiveFloat | None = Field(
        None,
        description="Maximum GPU seconds per UTC day: those used, and those predicted for images that have not ended.",
    )
    sweep_cells_per_day: PositiveInt | None = Field(
        None, description="Maximum number of cells of new sweeps and extensions per UTC day."
    )
