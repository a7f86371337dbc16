"""A file of a checkpoint that cannot be read is named, whatever the libraries say of it."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app.config import ModelConfig
from serve_app.engine.torch_engine import TorchEngine
from serve_app.errors import CheckpointRefused
from serve_app.models.architecture import architecture_of
from serve_app.models.registry import MODELS
from serve_app.pipeline import checkpoint, miniature
from tests.conftest import edits_server

SPEC = MODELS["qwen_image_edit"]


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(miniature.checkpoint_folder(SPEC), tmp_path / "checkpoint"))


@pytest.mark.parametrize(
    "content", [b"{nope", b"{}", b"[]", b"", b"\xff", b'{"added_tokens": [], "model": {"type": "?"}}']
)
@pytest.mark.parametrize("part", ["tokenizer", "processor"])
def test_broken_tokenizer_is_named(folder, capsys, part, content):
    file = folder / part / "tokenizer.json"
    file.write_bytes(content)
    config = ModelConfig(checkpoint=str(folder), device="cpu")
    with pytest.raises(CheckpointRefused) as caught:
        checkpoint.load(config, SPEC, torch.device("cpu"), torch.float32)
    assert str(file) in str(caught.value)
    assert edits_server("verify", folder, "--device", "cpu", "--size", "64") == 1
    assert f"{file}" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["tokenizer", "processor"])
def test_missing_tokenizer_is_refused(folder, part):
    (folder / part / "tokenizer.json").unlink()
    with pytest.raises(CheckpointRefused, match=f"the tokenizer in {folder / part} knows no words"):
        checkpoint.read(folder, torch.float32)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer/tokenizer_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "processor/processor_config.json",
    ],
)
def test_other_broken_files_are_named(folder, name):
    (folder / name).write_bytes(b"[]")
    with pytest.raises(CheckpointRefused) as caught:
        checkpoint.load(ModelConfig(checkpoint=str(folder)), SPEC, torch.device("cpu"), torch.float32)
    assert str(folder / name) in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_ingress_names_a_broken_config_of_the_transformer(folder, content):
    file = folder / "transformer/config.json"
    file.write_bytes(content)
    with pytest.raises(CheckpointRefused, match=str(file)):
        architecture_of(ModelConfig(checkpoint=str(folder)))


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            ["scaled_fp8", "a.weight"],
            "a single file with scaled fp8 weights, whose bf16 weights cannot be had back: name",
        ),
        (["a.weight", "a.scale_weight"], "a single file with scaled fp8 weights"),
        (["a.weight"], "is a single file: name a folder in diffusers' layout with bf16 weights"),
    ],
)
def test_single_file_is_refused_with_what_is_needed(tmp_path, names, sentence):
    file = tmp_path / "qwen_image_edit.safetensors"
    save_file({name: torch.ones(2) for name in names}, file)
    with pytest.raises(CheckpointRefused, match=sentence):
        checkpoint.find(ModelConfig(checkpoint=str(file)), SPEC)


def test_single_file_that_is_broken_is_refused_too(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"{nope")
    with pytest.raises(CheckpointRefused, match="is not a folder in diffusers' layout, and cannot be read"):
        checkpoint.find(ModelConfig(checkpoint=str(file)), SPEC)


def test_scaled_fp8_weights_in_a_folder_are_refused_too(folder):
    """The libraries ignore the scales, and the images would be wrong."""
    file = folder / "transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("to_q.weight"))
    tensors |= {
        name: tensors[name].to(torch.float8_e4m3fn),
        name.replace(".weight", ".scale_weight"): torch.ones(1),
    }
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointRefused, match=f"{file} has scaled fp8 weights, whose bf16 weights"):
        checkpoint.load(ModelConfig(checkpoint=str(folder)), SPEC, torch.device("cpu"), torch.float32)
    with pytest.raises(CheckpointRefused, match="has scaled fp8 weights"):
        TorchEngine.read(folder, SPEC, ModelConfig(checkpoint=str(folder), device="cpu", offload="stream"))
