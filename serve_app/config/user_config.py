"""The `user_config` of the deployments: settings that change in place, without a restart of replicas."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from serve_app.config.app import ProfileName
from serve_app.config.limits import LimitsConfig
from serve_app.config.section import ConfigSection, faults_of
from serve_app.config.tiers import QualityName

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
PRESET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")


def _check_name(name: str) -> str:
    if not PRESET_NAME.fullmatch(name):
        raise ValueError(
            "a preset's name has up to 100 letters, digits and characters of . _ : - and begins with a letter or digit"
        )
    return name


def _without_null(presets: Any) -> Any:
    """YAML has null for a key whose entries are all comments."""
    return {} if presets is None else presets


PresetName = Annotated[str, AfterValidator(_check_name)]


class EditorSettings(ConfigSection):
    """The `user_config` of an `Editor-<id>` deployment."""

    log_level: LogLevel = Field("INFO", description="The least severe messages that are logged.")


class PresetLora(ConfigSection):
    """One LoRA of a preset."""

    path: str = Field(description="Relative to the LoRA root, or a URL, as in a request.")
    network_multiplier: float = Field(1.0, description="The strength.")


class LossLimits(ConfigSection):
    """The largest loss of a tier that a preset or a request accepts; every image that was measured is within it.

    At least one limit is set. Unknown fields are refused, so that a misspelt limit is not taken for none.
    """

    psnr_db: float | None = Field(
        None, gt=0, le=200, description="The lowest PSNR (dB) of a measured image compared with `exact`."
    )
    ssim: float | None = Field(
        None, ge=0, le=1, description="The lowest SSIM of a measured image compared with `exact`."
    )

    @model_validator(mode="before")
    @classmethod
    def _has_known_limits(cls, sent: Any) -> Any:
        if isinstance(sent, Mapping):
            unknown = sorted(str(name) for name in sent if name not in cls.model_fields)
            if unknown or all(value is None for value in sent.values()):
                raise PydanticCustomError("max_loss_limits", "set psnr_db, ssim or both, and no other field")
        return sent


class Preset(ConfigSection):
    """A named set of a request's fields.

    The values follow the rules of the request's fields of the same names.
    """

    model: str = Field(description="The id of the model, unless a request sends one.")
    loras: tuple[PresetLora, ...] = Field((), description="The LoRAs. A request that sends `loras` replaces them.")
    sample_steps: int | None = Field(None, description="The steps of each prompt that sends none.")
    guidance_scale: float | None = Field(None, description="The guidance of each prompt that sends none.")
    neg: str | None = Field(None, description="The negative prompt of each prompt that sends none.")
    size: str | None = Field(
        None,
        description="The size of each prompt that sends no `size`, `width` or `height`: `input`, or as `1024x768`.",
    )
    trigger_word: str | None = Field(None, description="The trigger word of requests that send none.")
    profile: ProfileName | None = Field(None, description="The `profile` of requests that send none.")
    output_format: str | None = Field(None, description="The `output_format` of requests that send none.")
    quality: QualityName | None = Field(None, description="The `quality` of requests that send none.")
    max_loss: LossLimits | None = Field(
        None,
        description="The largest loss that `quality` may have, as the keys below. If it is larger, or was not measured "
        "for the LoRAs, the images are `exact`, and the result says so.",
    )
    tenants: tuple[str, ...] = Field(
        (), description="The tenants that may use it, besides operators. For others it does not exist. Empty: all."
    )


class IngressSettings(ConfigSection):
    """The `user_config` of the `Ingress` deployment."""

    log_level: LogLevel = Field("INFO", description="The least severe messages that are logged.")
    max_queued_per_tenant: PositiveInt | None = Field(None, description="Replaces `jobs.max_queued_per_tenant`.")
    max_queued: PositiveInt | None = Field(None, description="Replaces `jobs.max_queued`.")
    limits: LimitsConfig = Field(
        LimitsConfig(), description="What each tenant may have and do: see [Limits](how-to/limits.md)."
    )
    keep_warm: tuple[str, ...] = Field(
        (),
        description="LoRAs, named as in requests, that every editor loads into host memory before it takes "
        "traffic. After them it loads those that recent images used most.",
    )
    presets: Annotated[dict[PresetName, Preset], BeforeValidator(_without_null)] = Field(
        {}, description="Named sets of fields that a request can name, by name: see [Presets](#presets)."
    )


@dataclass(frozen=True)
class MalformedPreset:
    """An entry of `presets` that cannot be read: what is wrong with it, and whose it is as far as it says so.

    `tenants` are as in `Preset`; None if they cannot be read either.
    """

    reason: str
    tenants: tuple[str, ...] | None = None


def read_ingress_settings(user_config: Mapping[str, Any]) -> tuple[IngressSettings, dict[str, MalformedPreset]]:
    """The settings without the presets that are not well formed, and those by name.

    Raises ValidationError for any other key: one preset with a fault must not take the rest away.
    """
    presets = user_config.get("presets")
    if not isinstance(presets, Mapping):
        return IngressSettings.model_validate(user_config), {}
    refused = {}
    for name, preset in presets.items():
        try:
            IngressSettings.model_validate({"presets": {name: preset}})
        except ValidationError as error:
            refused[str(name)] = MalformedPreset(faults_of(error, 2), _tenants_of(preset))
    sound = {name: preset for name, preset in presets.items() if str(name) not in refused}
    return IngressSettings.model_validate({**user_config, "presets": sound}), refused


def _tenants_of(preset: object) -> tuple[str, ...] | None:
    tenants = preset.get("tenants", ()) if isinstance(preset, Mapping) else None
    if not isinstance(tenants, Sequence) or not all(isinstance(tenant, str) for tenant in tenants):
        return None
    return None if isinstance(tenants, str) else tuple(tenants)
