"""A checkpoint in the layout of the published repositories, which older libraries wrote: the same pixels."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from serve_app.config import ModelConfig
from serve_app.engine.torch_engine import TorchEngine
from serve_app.errors import CheckpointRefused
from serve_app.models.prompt_tokens import SPECIAL_TOKENS
from serve_app.pipeline import checkpoint, miniature
from serve_app.pipeline.miniature import TOKEN_IDS
from tests.conftest import THREADS
from tests.engine.once import encode_once
from tests.engine.pipelines import EDIT


def rewrite(file: Path, **changes: Any) -> None:
    """Change some keys of a JSON file; those with None go."""
    found = json.loads(file.read_text())
    changed = {key: value for key, value in (found | changes).items() if value is not None}
    file.write_text(json.dumps(changed))


def older_tokenizer(folder: Path) -> None:
    """`vocab.json` and `merges.txt` instead of `tokenizer.json`."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "added_tokens.json").write_text(json.dumps(TOKEN_IDS))
    decoder = {
        str(number): {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "special": True}
        for token, number in TOKEN_IDS.items()
    }
    rewrite(
        folder / "tokenizer_config.json",
        added_tokens_decoder=decoder,
        additional_special_tokens=list(SPECIAL_TOKENS),
        extra_special_tokens=None,
        backend=None,
    )
    (folder / "tokenizer.json").unlink()


def older_processor(folder: Path) -> None:
    """Two files for images and videos, with limits of pixels."""
    both = json.loads((folder / "processor_config.json").read_text())
    for part, name in (("image_processor", "preprocessor_config"), ("video_processor", "video_preprocessor_config")):
        config = both[part] | {"processor_class": "Qwen2VLProcessor"}
        config |= {"min_pixels": config["size"]["shortest_edge"], "max_pixels": config["size"]["longest_edge"]}
        (folder / f"{name}.json").write_text(json.dumps(config))
    (folder / "processor_config.json").unlink()


def older_text_encoder(file: Path) -> None:
    """As transformers 4.53 wrote it: `rope_scaling` and `torch_dtype`."""
    config = json.loads(file.read_text())
    rope = config["text_config"].pop("rope_parameters")
    config["text_config"] |= {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"mrope_section": rope["mrope_section"], "rope_type": "default", "type": "default"},
        "torch_dtype": "float32",
    }
    config["vision_config"].pop("rope_parameters")
    config["vision_config"] |= {"in_chans": 3, "spatial_patch_size": 14}
    del config["dtype"]
    file.write_text(json.dumps(config | {"torch_dtype": "float32", "transformers_version": "4.53.1"}))


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    miniature.make(EDIT).save_pretrained(folder, max_shard_size="20KB")
    for part in ("tokenizer", "processor"):
        older_tokenizer(folder / part)
    older_processor(folder / "processor")
    older_text_encoder(folder / "text_encoder/config.json")
    return folder


def test_published_layout_makes_the_same_pixels(published, bench, make_plan, control_png):
    assert (published / "transformer/diffusion_pytorch_model.safetensors.index.json").is_file()
    assert (published / "text_encoder/model.safetensors.index.json").is_file()
    assert not [*published.rglob("tokenizer.json")]
    config = ModelConfig(checkpoint=str(published), device="cpu", threads=THREADS)
    engine = TorchEngine.load(config)
    encode_once(engine._pipeline.vae)
    plan = make_plan(prompt="make it night <|im_end|>, naïve", steps=1)
    made, expected = (each.edit(plan, [control_png]).image for each in (engine, bench(EDIT.id).engine))
    assert np.array_equal(np.asarray(made), np.asarray(expected))


@pytest.mark.parametrize("content", ["{nope", "{}"])
def test_tokenizer_that_cannot_be_read_is_named(published, tmp_path, content):
    folder = Path(shutil.copytree(published, tmp_path / "checkpoint"))
    file = folder / "tokenizer/vocab.json"
    file.write_text(content)
    with pytest.raises(CheckpointRefused) as refused:
        checkpoint.read(folder, torch.float32)
    assert str(file.parent) in str(refused.value)
