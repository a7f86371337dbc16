"""The trained miniature for each model of the family: the same weights in each model's pipeline.

It was trained as `qwen_image_edit`, also with the prompts of the edit-plus models (tools/train_miniature.py).
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from serve_app.models.architecture import TRAINED_MINIATURE
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.pipeline.miniature import written_once

TRAINED_MODEL = MODELS["qwen_image_edit"]
DOCUMENTS = shutil.ignore_patterns("README.md", "figures.json", "training.jsonl")

logger = logging.getLogger(__name__)


def checkpoint_folder(spec: ModelSpec) -> Path:
    """The directory of a model's trained miniature: the original for the model that was trained, otherwise a copy."""
    if spec == TRAINED_MODEL:
        return TRAINED_MINIATURE
    if not spec.requires_control_image:
        logger.warning("the miniature was trained to edit: %s has only a prompt, and gives noise", spec.id)
    sources = [Path(__file__), *sorted(TRAINED_MINIATURE.rglob("*.safetensors"))]
    return written_once(spec, sources, lambda folder: _write(spec, folder))


def _write(spec: ModelSpec, folder: Path) -> None:
    shutil.copytree(TRAINED_MINIATURE, folder, ignore=DOCUMENTS, dirs_exist_ok=True)
    index = _read(folder / "model_index.json") | {"_class_name": spec.pipeline}
    if not spec.requires_control_image:
        del index["processor"]
        shutil.rmtree(folder / "processor")
    (folder / "model_index.json").write_text(json.dumps(index))
    transformer = folder / "transformer/config.json"
    transformer.write_text(json.dumps(_read(transformer) | {"zero_cond_t": spec.zero_cond_t}))


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found
