"""The trainer's sampling, written a second time: a config and a checkpoint in, its folder with samples out.

It follows ai-toolkit's own steps, and shares nothing with `serve_app/training`. As a program it makes a folder to try
the service with, from the trained miniature and the sample LoRAs:

    python -m tests.engine.trainer FOLDER
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL.Image
import torch
import yaml
from safetensors.torch import load_file, save_file

from serve_app.pipeline.random_lora import trainer_metadata
from tests.engine.oracle import merge_lora, trainer_edit

NEWEST = "0.12.26"
FIRST_TIME_MS = 1724085406830


def train(
    pipeline, model: str, folder: Path, config: Mapping[str, Any], loras: Mapping[int, Path], version: str = NEWEST
) -> None:
    """Leave in `folder` what the trainer leaves there. `loras` are the files whose weights it saves, by step.

    The last one of several is the final file. Paths of control images in the config are those of this machine.
    """
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.dump(dict(config)))
    process = config["config"]["process"][0]
    name, word = config["config"]["name"], process.get("trigger_word")
    sample_all(pipeline, model, folder, process, 0, None, version)
    for step, lora in loras.items():
        suffix = "" if len(loras) > 1 and step == max(loras) else f"_{str(step).zfill(9)}"
        file = folder / f"{name}{suffix}.safetensors"
        save_file(load_file(lora), file, metadata=trainer_metadata(name, word or name, version, step))
        sample_all(pipeline, model, folder, process, step, file, version)


@torch.no_grad()
def sample_all(
    pipeline, model: str, folder: Path, process: Mapping[str, Any], step: int, lora: Path | None, version: str
) -> None:
    """Write the samples of a step."""
    (folder / "samples").mkdir(exist_ok=True)
    section = process["sample"]
    items = section["samples"] if "samples" in section else [{"prompt": prompt} for prompt in section["prompts"]]
    count = len(str(len(items)))
    seed = section.get("seed", 0)
    for i, item in enumerate(items):
        if section.get("walk_seed", False):
            seed = section.get("seed", 0) + i
        if item.get("seed") is not None:
            seed = item["seed"]
        text = item["prompt"]
        if process.get("trigger_word") is not None:
            text = text.replace("[name]", process["trigger_word"]).replace("[trigger]", process["trigger_word"])

        def of(key: str, default: Any, item: Mapping[str, Any] = item) -> Any:
            return item.get(key, section.get(key, default))

        multiplier = of("network_multiplier", 1)
        if isinstance(multiplier, str):
            try:
                multiplier = float(multiplier)
            except ValueError:
                multiplier = 1.0
        values = {"width": of("width", 512), "height": of("height", 512), "seed": seed}
        values |= {"guidance": of("guidance_scale", 7), "steps": of("sample_steps", 20), "negative": of("neg", False)}
        values["prompt"], *parts = (part.strip() for part in text.strip().split("--"))
        for part in parts:
            flag, _, content = part.partition(" ")
            if flag == "n":
                values["negative"] = content.strip()
            elif flag == "w":
                values["width"] = int(content)
            elif flag == "h":
                values["height"] = int(content)
            elif flag in ("d", "seed"):
                values["seed"] = int(content)
            elif flag in ("l", "cfg"):
                values["guidance"] = float(content)
            elif flag in ("s", "steps"):
                values["steps"] = int(content)
            elif flag in ("m", "network_multiplier"):
                multiplier = float(content)
        values["width"] = values["width"] // 8 * 8 // 32 * 32
        values["height"] = values["height"] // 8 * 8 // 32 * 32
        values["negative"] = values["negative"] or ""
        paths = [item.get("ctrl_img_1", item.get("ctrl_img")), item.get("ctrl_img_2"), item.get("ctrl_img_3")]
        images = [PIL.Image.open(path) for path in paths if path]
        with merged(pipeline, lora, multiplier):
            made = trainer_edit(pipeline, model, images, version=version, **values)
        file = f"{FIRST_TIME_MS + 1000 * step + i}__{str(step).zfill(9)}_{str(i).zfill(count)}"
        made.save(folder / f"samples/{file}.{section.get('format', 'jpg')}")


@contextmanager
def merged(pipeline, lora: Path | None, multiplier: float) -> Iterator[None]:
    """Within, the pipeline has the LoRA in its weights."""
    if lora is None:
        yield
        return
    before = {name: weight.clone() for name, weight in pipeline.transformer.state_dict().items()}
    try:
        merge_lora(pipeline, lora, multiplier)
        yield
    finally:
        pipeline.transformer.load_state_dict(before)


def config_of(name: str, model: str, sample: Mapping[str, Any], trigger_word: str | None = "sks") -> dict[str, Any]:
    """A config of the trainer for one of our models."""
    arch, base = {
        "qwen_image_edit": ("qwen_image_edit", "Qwen/Qwen-Image-Edit"),
        "qwen_image_edit_plus": ("qwen_image_edit_plus", "Qwen/Qwen-Image-Edit-2509"),
        "qwen_image": ("qwen_image", "Qwen/Qwen-Image"),
    }[model]
    process: dict[str, Any] = {"type": "sd_trainer", "trigger_word": trigger_word, "sample": dict(sample)}
    process |= {"model": {"arch": arch, "name_or_path": base}, "train": {"steps": 1000, "dtype": "fp32"}}
    return {"job": "extension", "config": {"name": name, "process": [process]}}


def main(target: Path) -> None:
    """Make a training job of the trained miniature: its final file is a sample LoRA, its checkpoints are weaker."""
    from serve_app.config import ModelConfig
    from serve_app.models.registry import MODELS
    from serve_app.pipeline import checkpoint
    from tests.conftest import ROOT

    spec = MODELS["qwen_image_edit"]
    pipeline = checkpoint.load(ModelConfig(), spec, torch.device("cpu"), torch.float32)
    control = target / "control/astronaut.jpg"
    control.parent.mkdir(parents=True, exist_ok=True)
    control.write_bytes((ROOT / "samples/astronaut.jpg").read_bytes())
    final = ROOT / "samples/loras/my_lora_job/my_lora.safetensors"
    weaker = target / "weaker.safetensors"
    tensors = load_file(final)
    save_file({key: tensor * (0.5 if "lora_B" in key else 1) for key, tensor in tensors.items()}, weaker)
    samples = [{"prompt": f"[trigger] {text}", "ctrl_img": str(control)} for text in ("make it night", "blur it")]
    sample = {"samples": samples, "sample_steps": 8, "guidance_scale": 1, "walk_seed": True, "seed": 42}
    config = config_of("my_job", spec.id, sample | {"width": 512, "height": 512})
    train(pipeline, spec.id, target / "my_job", config, {250: weaker, 500: final})
    weaker.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
