"""What of a training job's `config.yaml` decides its sample images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.schemas.text import is_text
from serve_app.training.config_yaml import ConfigUnreadable, read_config
from serve_app.training.model_names import model_of
from serve_app.training.samples import FORMAT, Sample, read_samples

MAX_TEXT, MAX_STEPS = 500, 10**12 - 1
# The trainer's names of dtypes, and torch's.
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of a training job.

    `job_name` begins the names of its files. `model` is the id of our model, None if the config names another.
    `steps` is how long the job trains. `quantized`: the base, or its text encoder, was quantised while sampling.
    `low_vram`: the VAE worked in tiles. `format` is the suffix of sample images. `problem` says why the samples cannot
    be read. `dtype` is what the base model computed in, by torch's name; None if the config does not say.
    """

    job_name: str | None
    model: str | None
    arch: str | None
    base: str | None
    trigger_word: str | None
    steps: int | None
    quantized: bool
    low_vram: bool
    ema: bool
    format: str
    samples: tuple[Sample, ...]
    problem: str | None = None
    dtype: str | None = None


def read_settings(data: bytes) -> TrainingSettings:
    """The settings in a `config.yaml`. Raises ConfigUnreadable."""
    job = _mapping(read_config(data).get("config"))
    processes = job.get("process")
    if not isinstance(processes, list) or not processes or not isinstance(processes[0], dict):
        raise ConfigUnreadable("is no config of ai-toolkit: it has no config.process")
    process: dict[str, Any] = processes[0]
    model, sample = _mapping(process.get("model")), _mapping(process.get("sample"))
    train = _mapping(process.get("train"))
    arch, base, trigger = _text(model.get("arch")), _text(model.get("name_or_path")), _text(process.get("trigger_word"))
    samples, problem = _samples(sample, trigger)
    steps, dtype = train.get("steps"), _text(train.get("dtype"))
    return TrainingSettings(
        job_name=_text(job.get("name")),
        model=model_of(arch, base),
        arch=arch,
        base=base,
        trigger_word=trigger,
        steps=steps if type(steps) is int and 0 <= steps <= MAX_STEPS else None,
        quantized=any(bool(model.get(key)) for key in ("quantize", "quantize_te")),
        low_vram=bool(model.get("low_vram")),
        ema=bool(_mapping(train.get("ema_config")).get("use_ema")),
        format=(_text(sample.get("format")) or FORMAT).lstrip("."),
        samples=samples,
        problem=problem,
        dtype=dtype and DTYPES.get(dtype, dtype),
    )


def _samples(section: Mapping[str, Any], trigger_word: str | None) -> tuple[tuple[Sample, ...], str | None]:
    try:
        return read_samples(section, trigger_word), None
    except ValueError as error:
        return (), f"the `sample` section of config.yaml cannot be read: {error}"


def _mapping(value: Any) -> dict[str, Any]:
    """`value` if it is a mapping, with those keys that are text."""
    return {key: each for key, each in value.items() if isinstance(key, str)} if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    """`value` if it is a short text that is not empty, and that JSON can have."""
    return value if isinstance(value, str) and 0 < len(value) <= MAX_TEXT and is_text(value) else None
