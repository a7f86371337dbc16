"""The whole configuration: the `args` of serve_config.yaml."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from serve_app.config.auth import AuthConfig
from serve_app.config.environment import Url
from serve_app.config.fetch import FetchConfig
from serve_app.config.front import FrontConfig
from serve_app.config.hosts import is_loopback
from serve_app.config.jobs import SQLITE_PREFIX, JobsConfig
from serve_app.config.models import ModelConfig
from serve_app.config.paths import absolute
from serve_app.config.section import ConfigSection
from serve_app.config.sweeps import SweepsConfig
from serve_app.config.webhooks import WebhooksConfig
from serve_app.errors import ConfigRefused

# The most that `max_prompt_chars` may be: what the schema of a request takes.
MAX_PROMPT_CHARS = 100_000

# The value with which the adapter's file decides: its trainer version the profile, its trigger word that of a prompt.
AUTO = "auto"

# Whose preparation of an edit is followed: the reference server's, the trainer's preview's (of today, or of trainers up
# to an older version), or that of the trainer version that wrote the adapter. See models/profile.py.
ProfileName = Literal["reference", "trainer", "auto", "trainer-0.6.0", "trainer-0.7.32", "trainer-0.9.0"]


class AppConfig(ConfigSection):
    """The `args` of serve_config.yaml. Every key is optional; the defaults run on a laptop."""

    models: tuple[ModelConfig, ...] = Field((ModelConfig(),), min_length=1, description="The models to serve.")
    lora_root: Url = Field(
        "samples/loras", description="The folder or bucket in which `loras[].path` of a request is looked up."
    )
    preview_profile: ProfileName = Field(
        "reference",
        description="The `profile` of requests that name none: whose preparation of an edit is followed.",
    )
    max_loras_per_request: PositiveInt = Field(4, description="Maximum number of LoRAs of one request.")
    require_lora: bool = Field(True, description="Refuse requests without a LoRA.")
    playground: bool = Field(
        True, description="Serve the playground at `/`: a page on which people edit images in a browser."
    )
    history_without_keys: bool = Field(
        False,
        description="Show the history, the sweeps and the usage although there are no API keys: to programs on this "
        "machine and to the playground. Leave it out behind a reverse proxy on this machine. Refused where the "
        "service listens on anything but loopback, and together with `auth.keys_file`, which gives each key its own "
        "history.",
    )
    base_url: Url | None = Field(
        None, description="What status and result URLs start with. Null: the address that the client used."
    )
    cors_origins: tuple[str, ...] = Field(
        ("*",), description="Origins whose pages may read answers in a browser. `*`: all."
    )
    allowed_hosts: tuple[str, ...] = Field(
        ("*",),
        min_length=1,
        description="Host names under which the service answers, without ports. `*` stands for any characters.",
    )
    max_body_bytes: PositiveInt = Field(64_000_000, description="Maximum size of a request's body.")
    body_timeout_s: PositiveFloat = Field(120.0, description="Time within which a body must arrive.")
    max_prompt_chars: int = Field(
        20_000, gt=0, le=MAX_PROMPT_CHARS, description="Maximum number of characters of a prompt."
    )
    fetch: FetchConfig = Field(FetchConfig(), description="Downloads for clients.")
    jobs: JobsConfig = Field(JobsConfig(), description="The job database, deadlines, limits and retention.")
    sweeps: SweepsConfig = Field(SweepsConfig(), description="How large a sweep may be, and how long it is kept.")
    auth: AuthConfig = Field(AuthConfig(), description="Who may call.")
    webhooks: WebhooksConfig = Field(WebhooksConfig(), description="Delivery of webhooks.")
    artifacts_url: Url = Field(
        "data/artifacts", description="The folder or bucket for control images, results and receipts of adapters."
    )
    front: FrontConfig = Field(FrontConfig(), description="The HTTP front of `edits-server run`.")
    config_folder: str | None = Field(
        None,
        description="The folder that relative paths are relative to. `edits-server run` sets it to the folder of the "
        "config file. Null: the folder of the file that `serve run` was started with on this machine.",
    )

    @model_validator(mode="after")
    def _models_are_distinct(self) -> Self:
        ids = [model.id for model in self.models]
        if len(set(ids)) < len(ids):
            raise ValueError(f"models: each id may be listed once, got {ids}")
        return self

    @model_validator(mode="after")
    def _history_is_of_keys_or_of_all(self) -> Self:
        if self.history_without_keys and self.auth.keys_file is not None:
            raise ValueError("history_without_keys: with auth.keys_file, each key sees its own history; leave it out")
        return self

    def served(self, model_id: str) -> ModelConfig:
        """The settings of the model with this id; the default ones if `models` does not list it."""
        return next((model for model in self.models if model.id == model_id), ModelConfig(id=model_id))

    def resolved(self, folder: Path | None) -> Self:
        """This configuration with absolute paths: `~` is the user's home, the rest is relative to `folder`.

        Raises ValueError that names the key of a relative path if `folder` is None, which means that it is unknown.
        """
        jobs, auth = self.jobs, self.auth
        if jobs.database_url.startswith(SQLITE_PREFIX):
            database = absolute("jobs.database_url", jobs.database_url.removeprefix(SQLITE_PREFIX), folder)
            jobs = jobs.model_copy(update={"database_url": SQLITE_PREFIX + database})
        if auth.keys_file is not None:
            auth = auth.model_copy(update={"keys_file": absolute("auth.keys_file", auth.keys_file, folder)})
        changes: dict[str, Any] = {
            "auth": auth,
            "models": tuple(model.resolved(folder) for model in self.models),
            "jobs": jobs,
            "lora_root": absolute("lora_root", self.lora_root, folder),
            "artifacts_url": absolute("artifacts_url", self.artifacts_url, folder),
        }
        return self.model_copy(update=changes)

    def refuse_open_history(self, host: str) -> None:
        """Raise ConfigRefused if other machines could read the history of a service that listens on `host`."""
        if self.history_without_keys and not is_loopback(host):
            raise ConfigRefused(
                f"history_without_keys: the service listens on {host}, where everybody could read everybody's "
                "requests; listen on 127.0.0.1, make API keys (auth.keys_file), or set history_without_keys to false"
            )

    def refuse_missing_folders(self) -> None:
        """Raise ConfigRefused if the LoRA root is a local folder that does not exist."""
        if "://" not in self.lora_root and not Path(self.lora_root).is_dir():
            raise ConfigRefused(f"lora_root: there is no folder {self.lora_root}")
