"""What the command line of `edits-server calibrate` asks for. Nothing here imports torch, so errors come at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from serve_app.config import AppConfig, ModelConfig, TierName
from serve_app.errors import ConfigRefused
from serve_app.intake.calibrations.requests import chosen_tiers
from serve_app.schemas.requests import Lora


@dataclass(frozen=True)
class Wanted:
    """What to measure. Each of `sets` is a set of LoRAs that are used together; the empty one is the base model."""

    model: ModelConfig
    tiers: Sequence[TierName]
    sets: Sequence[Sequence[Lora]]
    prompts: Path | None
    training_job: str | None


def read_loras(texts: Sequence[str]) -> list[Lora]:
    """The LoRAs of a command line: each a path as in requests, with `:STRENGTH` behind it unless that is 1.

    Raises ConfigRefused.
    """
    return [_lora(text) for text in texts]


def _lora(text: str) -> Lora:
    path, _, last = text.rpartition(":")
    strength = _number(last) if path else None
    try:
        return Lora(path=text) if strength is None else Lora(path=path, network_multiplier=strength)
    except ValidationError as error:
        raise ConfigRefused(f"--lora {text}: {'; '.join(fault['msg'] for fault in error.errors())}") from error


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def wanted_of(
    config: AppConfig,
    model: str | None,
    tiers: Sequence[str],
    sets: Sequence[Sequence[Lora]],
    prompts: Path | None,
    training_job: str | None,
) -> Wanted:
    """What a command line asks for. Raises ConfigRefused and InvalidParameter."""
    if (prompts is None) == (training_job is None):
        raise ConfigRefused("name either a file of prompts (--prompts) or a training job (--training-job)")
    if not sets:
        raise ConfigRefused("there is nothing to measure: name a LoRA with --lora, or leave out --no-base")
    found = _model(config, model)
    return Wanted(found, chosen_tiers(found, tiers), sets, prompts, training_job)


def _model(config: AppConfig, name: str | None) -> ModelConfig:
    served = {model.id: model for model in config.models}
    if name is not None and name not in served:
        raise ConfigRefused(f"--model: the config has no model {name!r}, it has {', '.join(served)}")
    candidates = [served[name]] if name else [model for model in config.models if model.tiers]
    if len(candidates) > 1:
        names = ", ".join(model.id for model in candidates)
        raise ConfigRefused(f"several models have tiers; choose one with --model: {names}")
    return next(iter(candidates), config.models[0])
