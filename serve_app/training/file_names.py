"""The names that the trainer gives its files."""

import re
from dataclasses import dataclass

CONFIG = "config.yaml"
SAMPLES, THUMBNAILS = "samples", ".thumbs"
# <job name>[_LoRA]_<step, at least 9 digits>.safetensors
CHECKPOINT = re.compile(r"(?P<stem>.+)_(?P<step>\d{9,12})\.safetensors")
# <milliseconds since the epoch>__<step>_<number of the sample>.<format>
SAMPLE = re.compile(r"(?P<time>\d{1,17})__(?P<step>\d{9,12})_(?P<number>\d{1,6})\.(?P<format>jpe?g|png|webp)")
# What a job name gets when the trainer's LoRA has a name.
NAMED_LORA = "_LoRA"
WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class SampleName:
    """The parts of a sample image's name. `time_ms` is when it was made, since the epoch."""

    name: str
    time_ms: int
    step: int
    number: int
    format: str


def read_sample_name(name: str) -> SampleName | None:
    """The parts of a sample image's name; None if the trainer writes no such name."""
    match = SAMPLE.fullmatch(name)
    if match is None:
        return None
    return SampleName(name, int(match["time"]), int(match["step"]), int(match["number"]), match["format"])


def step_of(name: str) -> int | None:
    """The step of a checkpoint's name; None if it is none."""
    match = CHECKPOINT.fullmatch(name)
    return None if match is None else int(match["step"])


def stem_of(name: str) -> str:
    """The name of a file of weights without its step and suffix: the job's name, perhaps with `_LoRA`."""
    match = CHECKPOINT.fullmatch(name)
    return name.removesuffix(WEIGHTS) if match is None else match["stem"]
