"""Training folders in the layout of ai-toolkit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

FIRST_TIME_MS = 1724085406830


def trainer_config(
    name: str = "my_job",
    *,
    sample: Mapping[str, Any] = {},
    arch: str | None = "qwen_image_edit",
    base: str = "Qwen/Qwen-Image-Edit",
    trigger_word: str | None = "sks",
    model: Mapping[str, Any] = {},
    train: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """A `config.yaml` as the trainer writes it. `sample` is its section of this name."""
    process: dict[str, Any] = {"type": "sd_trainer", "training_folder": "output", "trigger_word": trigger_word}
    process |= {"model": {"arch": arch, "name_or_path": base} | dict(model), "train": {"steps": 500} | dict(train)}
    process |= {"sample": {"sampler": "flowmatch"} | dict(sample)}
    return {"job": "extension", "config": {"name": name, "process": [process]}, "meta": {"name": "[name]"}}


def write_config(folder: Path, config: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.yaml"
    file.write_text(yaml.dump(config))
    return file


def sample_name(step: int, number: int, *, count: int = 1, time_ms: int = FIRST_TIME_MS, suffix: str = "jpg") -> str:
    """The name of a sample image; `count` is the number of the job's samples."""
    return f"{time_ms}__{str(step).zfill(9)}_{str(number).zfill(len(str(count)))}.{suffix}"


def checkpoint_name(job: str, step: int | None, *, named: bool = False) -> str:
    """The name of a file of weights; None is the final one's step."""
    return job + ("_LoRA" if named else "") + ("" if step is None else f"_{str(step).zfill(9)}") + ".safetensors"


def write_sample_image(folder: Path, name: str, data: bytes = b"a jpeg") -> Path:
    file = folder / "samples" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def write_checkpoints(
    folder: Path, data: bytes, steps: Sequence[int | None] = (250, None), *, named: bool = False
) -> list[Path]:
    """Files of weights with this content, named after the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / checkpoint_name(folder.name, step, named=named) for step in steps]
    for file in files:
        file.write_bytes(data)
    return files
