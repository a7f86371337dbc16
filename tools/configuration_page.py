"""The page of all settings, made from the models of serve_app/config.

python -m tools.configuration_page > docs/configuration.md
"""

import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from inspect import getdoc
from typing import Any

from platformdirs import user_cache_path
from pydantic import BaseModel

from serve_app.config import (
    AccelerationConfig,
    AdapterConfig,
    AppConfig,
    AuthConfig,
    CheckpointConfig,
    EditorSettings,
    EncodingCacheConfig,
    FetchConfig,
    FrontConfig,
    IngressSettings,
    JobsConfig,
    LimitsConfig,
    LossLimits,
    LossyConfig,
    PlacementConfig,
    Preset,
    PresetLora,
    TierConfig,
    TiersConfig,
    WebhooksConfig,
)

INTRODUCTION = """# Configuration

This page is made from the models in `serve_app/config` by `python -m tools.configuration_page > docs/configuration.md`.

A config file such as `serve_config.yaml` is a config file of Ray Serve. Its `args` are the settings of the
application, and the `user_config` of a deployment those that change in place:

```yaml
applications:
  - name: edits
    import_path: serve_app.app:build
    args:                          # sections "Application" to "HTTP front" below
      models:
        - id: qwen_image_edit
          checkpoint: Qwen/Qwen-Image-Edit
      jobs: {keep_s: 86400}
    deployments:
      - name: Ingress
        user_config: {max_queued: 5000}   # section "User config" below
```

Every key is optional, except those that a preset needs. An unknown key or a wrong value stops the start, and the
message names the key. In a running service, one in `user_config` is logged and not applied. A change under
`args` restarts the replicas; a change of `user_config` does not. Relative paths are relative to the config file, and
`~` is the home folder. `${NAME}` stands for an environment variable in `lora_root`, `base_url`, `artifacts_url`,
`jobs.database_url`, `auth.keys_file` and `webhooks.secret`. Write passwords and secrets like this, because Serve logs
the config.
"""

# Name, reader and meaning.
VARIABLES = (
    (
        "`RAY_ADDRESS`",
        "`edits-server run`",
        "The Ray cluster to join, like `--address`. Without it the command starts one of its own.",
    ),
    (
        "`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`",
        "every replica",
        "Where spans are sent. Without them there are no spans. OpenTelemetry reads other `OTEL_*` variables, too.",
    ),
    ("`OTEL_TRACES_EXPORTER`", "every replica", "`none`: no spans."),
    (
        "`HF_HOME`, `HF_TOKEN`",
        "the model hub's client",
        "The folder of the hub's local cache, and the token for checkpoints that need one.",
    ),
    (
        "`AWS_*`, `GOOGLE_*`",
        "clients of `s3://` and `gs://` URLs",
        "Credentials for artifact storage and the LoRA root.",
    ),
)

MODEL_GROUPS: Mapping[str, type[BaseModel]] = {
    "Checkpoint": CheckpointConfig,
    "Placement": PlacementConfig,
    "Adapters": AdapterConfig,
    "Caches of encodings": EncodingCacheConfig,
    "Acceleration": AccelerationConfig,
    "Lossy options": LossyConfig,
    "Tiers": TiersConfig,
}
SECTIONS: Mapping[str, tuple[str, type[BaseModel]]] = {
    "fetch": ("Downloads", FetchConfig),
    "jobs": ("Jobs", JobsConfig),
    "auth": ("API keys", AuthConfig),
    "webhooks": ("Webhooks", WebhooksConfig),
    "front": ("HTTP front", FrontConfig),
}
WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true`, `false`"}
FORMATS = {"ipv4network": "network", "ipv6network": "network", "password": "`${NAME}`"}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
UNITS_OF_TIME = {"day": 86400, "hour": 3600, "minute": 60}
UNITS_OF_SIZE = {"GiB": 2**30, "MiB": 2**20, "GB": 10**9, "MB": 10**6}


def page() -> str:
    """The whole page in Markdown."""
    parts = [INTRODUCTION, "## Application\n", *_table(AppConfig, "", leave_out={"models", *SECTIONS})]
    parts += ["\n## Models\n", "Each entry of `models` has these keys, without a level for the groups.\n"]
    for heading, group in MODEL_GROUPS.items():
        parts += [f"### {heading}\n", f"{getdoc(group)}\n", *_table(group, "models[].")]
        parts.append("")
    parts += [f"Each tier has these keys. {getdoc(TierConfig)}\n", *_table(TierConfig, "models[].tiers.NAME."), ""]
    for key, (heading, section) in SECTIONS.items():
        parts += [f"## {heading}\n", f"{getdoc(section)}\n", *_table(section, f"{key}.")]
        parts.append("")
    parts.append("## User config\n")
    user_config: dict[str, type[BaseModel]] = {"Ingress": IngressSettings, "Editors": EditorSettings}
    for heading, settings in user_config.items():
        parts += [f"### {heading}\n", f"{getdoc(settings)}\n", *_table(settings, "", leave_out={"limits"})]
        parts.append("")
    parts += ["### Limits\n", f"{getdoc(LimitsConfig)}\n", f"{IngressSettings.model_fields['limits'].description}\n"]
    parts += [*_table(LimitsConfig, "limits."), ""]
    parts += [
        "### Presets\n",
        "Each entry of the ingress' `presets` has these keys: see [Presets](how-to/presets.md).\n",
    ]
    parts += [*_table(Preset, "presets.NAME."), "", *_table(LossLimits, "presets.NAME.max_loss."), ""]
    parts += [*_table(PresetLora, "presets.NAME.loras[]."), ""]
    parts.append("## Environment variables\n")
    parts.append("Replicas and commands read these variables, and those that a config names as `${NAME}`.\n")
    parts.append("| variable | read by | meaning |\n|---|---|---|")
    parts += [_row(variable) for variable in VARIABLES]
    return "\n".join(parts) + "\n"


def _table(model: type[BaseModel], prefix: str, leave_out: Collection[str] = ()) -> Iterator[str]:
    """The rows of one class' keys, each written after `prefix`."""
    schemas = model.model_json_schema()["properties"]
    # Without the keys that have to be there.
    defaults = model.model_construct().model_dump(mode="json")
    yield "| key | values | default | meaning |\n|---|---|---|---|"
    for name, field in model.model_fields.items():
        if name not in leave_out:
            otherwise = default(name, defaults[name]) if name in defaults else "required"
            yield _row((f"`{prefix}{name}`", values(schemas[name]), otherwise, field.description or ""))


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def values(schema: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in a few words."""
    if "anyOf" in schema:
        # Networks of both kinds are one word.
        return " or ".join(dict.fromkeys(values(choice) for choice in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "object")
    if kind == "object":
        return "mapping"
    if kind == "null":
        return "`null`"
    if kind == "array" and "prefixItems" in schema:
        return "[" + ", ".join(values(item) for item in schema["prefixItems"]) + "]"
    if kind == "array":
        return f"list of {values(schema['items'])}".replace("of mapping", "of mappings")
    words = FORMATS.get(schema.get("format", ""), WORDS[kind])
    bounds = [f"{sign} {schema[key]:,g}" for key, sign in BOUNDS.items() if key in schema]
    return " ".join([words, " and ".join(bounds)]).strip()


def default(name: str, value: Any) -> str:
    """A default as YAML has it, and in larger units if its key names a unit."""
    if isinstance(value, str):
        return f"`{value.replace(str(user_cache_path('serve_app')), '~/.cache/serve_app')}`"
    if isinstance(value, float):
        value = int(value) if value.is_integer() else value
    text = f"`{json.dumps(value)}`"
    if value is not None and name.endswith("_bytes"):
        return text + _in_units(value, UNITS_OF_SIZE)
    if value is not None and name.endswith("_s"):
        return text + _in_units(value, UNITS_OF_TIME)
    return text


def _in_units(value: int, units: Mapping[str, int]) -> str:
    for unit, size in units.items():
        count, rest = divmod(value, size)
        if rest == 0 and count > 0:
            plural = "s" if count > 1 and units is UNITS_OF_TIME else ""
            return f" ({count} {unit}{plural})"
    return ""


if __name__ == "__main__":
    sys.stdout.write(page())
