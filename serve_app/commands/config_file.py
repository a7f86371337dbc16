"""The config file of `edits-server run`: Serve's own format, checked before anything starts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import DeploymentSchema, HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from serve_app.commands.ports import LOOPBACK
from serve_app.config import AppConfig, EditorSettings, IngressSettings, strict_yaml
from serve_app.errors import ConfigRefused
from serve_app.intake.presets import KnownPreset

# By default, Serve's proxy closes a connection that is idle for 5 s, just when the front may send a request on it.
KEEP_ALIVE_S = 300
# The deployment that answers HTTP. The others are editors.
INGRESS = "Ingress"


@dataclass(frozen=True)
class ConfigFile:
    """A config file that can be run.

    `config` holds the args of its application with absolute paths; `raw` is the file's own content.
    """

    path: Path
    raw: Mapping[str, Any]
    config: AppConfig
    application: str
    route_prefix: str
    host: str
    port: int

    @property
    def base_path(self) -> str:
        """The beginning of every path of the application, without the last slash."""
        return self.route_prefix.rstrip("/")

    def behind_front(self, port: int) -> ServeDeploySchema:
        """The file for Serve to deploy: its proxy listens on a loopback port, to which only the front connects."""
        [application] = self.raw["applications"]
        args = (application.get("args") or {}) | {"config_folder": str(self.path.parent)}
        http = (self.raw.get("http_options") or {}) | {"host": LOOPBACK, "port": port}
        http.setdefault("keep_alive_timeout_s", KEEP_ALIVE_S)
        changes = {"applications": [application | {"args": args}], "http_options": http}
        return ServeDeploySchema.model_validate({**self.raw, **changes})


def read_config_file(path: Path) -> ConfigFile:
    """The config file at `path`, checked.

    Raises ConfigRefused with one sentence that names the key and what is wrong. It never contains a value, which may
    be a secret.
    """
    path = path.expanduser().absolute()
    raw = _mapping_of(path)
    try:
        schema = ServeDeploySchema.model_validate(raw)
    except ValidationError as error:
        raise ConfigRefused(f"{path}: {_sentence(error)}") from error
    _refuse_unknown(path, raw)
    if len(schema.applications) != 1:
        raise ConfigRefused(f"{path}: applications: there must be exactly one, not {len(schema.applications)}")
    if schema.http_options.ssl_certfile:
        raise ConfigRefused(f"{path}: http_options.ssl_certfile: TLS must end in a proxy in front of this service")
    [application] = schema.applications
    config = _resolved(path, application.args)
    _refuse_open_history(path, config, schema.http_options.host)
    _refuse_user_configs(path, application, config)
    return ConfigFile(
        path,
        raw,
        config,
        application.name,
        application.route_prefix or "/",
        schema.http_options.host,
        schema.http_options.port,
    )


def _mapping_of(path: Path) -> Mapping[str, Any]:
    try:
        raw = strict_yaml.load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigRefused(f"{path}: the config file cannot be read: {reason}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ConfigRefused(f"{path}: the YAML cannot be used: {getattr(error, 'problem', None)}{where}") from error
    if not isinstance(raw, dict):
        raise ConfigRefused(f"{path}: a config file is a mapping with the key applications")
    return raw


def _resolved(path: Path, args: Mapping[str, Any]) -> AppConfig:
    try:
        config = AppConfig.model_validate(args)
    except ValidationError as error:
        raise ConfigRefused(f"{path}: {_sentence(error, 'applications.0.args')}") from error
    try:
        resolved = config.resolved(Path(config.config_folder or path.parent))
    except ValueError as error:
        raise ConfigRefused(f"{path}: applications.0.args.{error}") from error
    resolved.refuse_missing_folders()
    return resolved


def _refuse_open_history(path: Path, config: AppConfig, host: str) -> None:
    try:
        config.refuse_open_history(host)
    except ConfigRefused as error:
        raise ConfigRefused(f"{path}: applications.0.args.{error}") from error


def _refuse_user_configs(path: Path, application: ServeApplicationSchema, config: AppConfig) -> None:
    """Raise ConfigRefused for settings that a running replica would log and not apply."""
    for index, deployment in enumerate(application.model_dump(exclude_unset=True).get("deployments", [])):
        if (user_config := deployment.get("user_config")) is None:
            continue
        key = f"applications.0.deployments.{index}.user_config"
        kind = IngressSettings if deployment["name"] == INGRESS else EditorSettings
        try:
            settings = kind.model_validate(user_config)
        except ValidationError as error:
            raise ConfigRefused(f"{path}: {_sentence(error, key)}") from error
        if isinstance(settings, IngressSettings):
            _refuse_presets(f"{path}: {key}.presets", settings, config)


def _refuse_presets(where: str, settings: IngressSettings, config: AppConfig) -> None:
    models = [model.id for model in config.models]
    for name, preset in settings.presets.items():
        if problem := KnownPreset.of(name, preset).problem:
            raise ConfigRefused(f"{where}.{name}: {problem.message}")
        if preset.model not in models:
            raise ConfigRefused(f"{where}.{name}.model: this service has these models: {', '.join(models)}")


def _sentence(error: ValidationError, prefix: str = "") -> str:
    """The key of the first fault and what is wrong with it, without the value."""
    faults = error.errors(include_input=False, include_context=False, include_url=False)
    parts = [str(part) for part in faults[0]["loc"]]
    if prefix:
        parts.insert(0, prefix)
    key = ".".join(parts)
    more = f" ({len(faults) - 1} more faults)" if len(faults) > 1 else ""
    return f"{key}: {faults[0]['msg'].removeprefix('Value error, ')}{more}"


def _refuse_unknown(path: Path, raw: Mapping[str, Any]) -> None:
    """Raise ConfigRefused if Serve does not know a key. Serve itself ignores unknown keys, even misspelt ones."""
    unknown = [
        *_unknown(raw, ServeDeploySchema, ""),
        *_unknown(raw.get("http_options"), HTTPOptionsSchema, "http_options."),
    ]
    for i, application in enumerate(raw["applications"]):
        unknown += _unknown(application, ServeApplicationSchema, f"applications.{i}.")
        for j, deployment in enumerate(application.get("deployments") or ()):
            unknown += _unknown(deployment, DeploymentSchema, f"applications.{i}.deployments.{j}.")
    if unknown:
        raise ConfigRefused(f"{path}: {', '.join(unknown)}: there is no such key")


def _unknown(raw: Mapping[str, Any] | None, schema: type[BaseModel], prefix: str) -> Iterable[str]:
    return [f"{prefix}{key}" for key in raw or () if key not in schema.model_fields]
