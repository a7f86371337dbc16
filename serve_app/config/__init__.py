"""The service's configuration: exactly the `args` and `user_config` of serve_config.yaml, a module for each section."""

from serve_app.config.app import AUTO, MAX_PROMPT_CHARS, AppConfig, ProfileName
from serve_app.config.auth import AuthConfig
from serve_app.config.environment import wants_spans
from serve_app.config.fetch import FetchConfig
from serve_app.config.front import FrontConfig
from serve_app.config.hosts import is_loopback
from serve_app.config.jobs import SQLITE_PREFIX, JobsConfig
from serve_app.config.limits import LimitsConfig
from serve_app.config.models import (
    MINIATURE,
    MINIATURE_RANDOM,
    AccelerationConfig,
    AdapterConfig,
    CheckpointConfig,
    EncodingCacheConfig,
    LossyConfig,
    ModelConfig,
    PlacementConfig,
)
from serve_app.config.sweeps import SweepsConfig
from serve_app.config.tiers import (
    TIER_NAMES,
    GateRest,
    QualityName,
    QuantizationName,
    SamplerName,
    TierConfig,
    TierName,
    TiersConfig,
    editor_group,
)
from serve_app.config.user_config import (
    EditorSettings,
    IngressSettings,
    LossLimits,
    MalformedPreset,
    Preset,
    PresetLora,
    read_ingress_settings,
)
from serve_app.config.webhooks import WebhooksConfig

__all__ = [
    "AUTO",
    "MAX_PROMPT_CHARS",
    "MINIATURE",
    "MINIATURE_RANDOM",
    "SQLITE_PREFIX",
    "TIER_NAMES",
    "AccelerationConfig",
    "AdapterConfig",
    "AppConfig",
    "AuthConfig",
    "CheckpointConfig",
    "EditorSettings",
    "EncodingCacheConfig",
    "FetchConfig",
    "FrontConfig",
    "GateRest",
    "IngressSettings",
    "JobsConfig",
    "LimitsConfig",
    "LossLimits",
    "LossyConfig",
    "MalformedPreset",
    "ModelConfig",
    "PlacementConfig",
    "Preset",
    "PresetLora",
    "ProfileName",
    "QualityName",
    "QuantizationName",
    "SamplerName",
    "SweepsConfig",
    "TierConfig",
    "TierName",
    "TiersConfig",
    "WebhooksConfig",
    "editor_group",
    "is_loopback",
    "read_ingress_settings",
    "wants_spans",
]
