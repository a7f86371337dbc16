"""The `user_config` of the deployments: settings that change in place, without a restart of replicas."""

from typing import Literal

from pydantic import Field, PositiveInt

from serve_app.config.section import ConfigSection

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class EditorSettings(ConfigSection):
    """The `user_config` of an `Editor-<id>` deployment."""

    log_level: LogLevel = Field("INFO", description="The least severe messages that are logged.")


class IngressSettings(ConfigSection):
    """The `user_config` of the `Ingress` deployment."""

    log_level: LogLevel = Field("INFO", description="The least severe messages that are logged.")
    max_queued_per_tenant: PositiveInt | None = Field(None, description="Replaces `jobs.max_queued_per_tenant`.")
    max_queued: PositiveInt | None = Field(None, description="Replaces `jobs.max_queued`.")
    keep_warm: tuple[str, ...] = Field(
        (),
        description="LoRAs, named as in requests, that every editor loads into host memory once it takes traffic. "
        "Those that were used most of late follow.",
    )
