"""The scale in a file's metadata: as diffusers' own loader has it, and as float64 has it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.models.registry import MODELS
from serve_app.pipeline import checkpoint, miniature
from tests.engine.test_formats import deltas_of

Q, K = (f"transformer_blocks.{block}.attn.to_{part}" for block, part in ((0, "q"), (1, "k")))
# Keys of PEFT's LoraConfig, the ranks of both modules, and their factors by the definition.
DECLARED = {
    "alpha over r": ({"r": 4, "lora_alpha": 16}, (4, 4), (4.0, 4.0)),
    "rank-stabilised": ({"r": 4, "lora_alpha": 16, "use_rslora": True}, (4, 4), (8.0, 8.0)),
    "defaults": ({}, (8, 8), (1.0, 1.0)),
    "default alpha": ({"r": 4}, (4, 4), (2.0, 2.0)),
    "default rank": ({"lora_alpha": 16}, (8, 8), (2.0, 2.0)),
    "ranks by module": ({"r": 4, "lora_alpha": 16, "rank_pattern": {K: 2}}, (4, 2), (4.0, 8.0)),
    "alphas by the end of a name": ({"r": 4, "lora_alpha": 16, "alpha_pattern": {"to_k": 2}}, (4, 4), (4.0, 0.5)),
    "the first pattern that fits": (
        {"r": 4, "lora_alpha": 16, "alpha_pattern": {"attn.to_q": 1, Q: 2, "to_k": 8}},
        (4, 4),
        (0.25, 2.0),
    ),
    "whole names": (
        {"r": 4, "lora_alpha": 16, "alpha_pattern": {f"^{Q}": 1, "^to_k": 8, "o_k": 8, f"^{Q}$": 9}},
        (4, 4),
        (0.25, 4.0),
    ),
    "both patterns, rank-stabilised": (
        {"r": 4, "use_rslora": True, "rank_pattern": {Q: 9}, "alpha_pattern": {K: 5}},
        (9, 4),
        (8 / 3, 2.5),
    ),
}


def tensors_of(ranks: tuple[int, int]) -> dict[str, Tensor]:
    torch.manual_seed(5)
    made = {}
    for module, rank in zip((Q, K), ranks, strict=True):
        made[f"transformer.{module}.lora_A.weight"] = torch.randn(rank, 16)
        made[f"transformer.{module}.lora_B.weight"] = torch.randn(16, rank)
    return made


@pytest.mark.parametrize("name", DECLARED)
def test_metadata_scales_as_in_diffusers_and_by_its_definition(tmp_path: Path, name: str):
    config, ranks, factors = DECLARED[name]
    tensors = tensors_of(ranks)
    keys = {"target_modules": [Q, K], "peft_type": "LORA"} | config
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in keys.items()})}
    save_file(tensors, tmp_path / "adapter.safetensors", metadata=metadata)
    pipeline = checkpoint.read(miniature.checkpoint_folder(MODELS["qwen_image"]), torch.float64)
    before = {module: pipeline.transformer.get_submodule(module).weight.clone() for module in (Q, K)}
    pipeline.load_lora_weights(str(tmp_path / "adapter.safetensors"), adapter_name="one")
    pipeline.fuse_lora()
    deltas = deltas_of(tensors, metadata)
    for module, factor in zip((Q, K), factors, strict=True):
        down, up = (tensors[f"transformer.{module}.lora_{part}.weight"].double() for part in "AB")
        ours = deltas[f"{module}.weight"].weight(torch.float64)
        theirs = pipeline.transformer.get_submodule(module).base_layer.weight - before[module]
        assert torch.allclose(ours, factor * (up @ down), rtol=1e-12, atol=0)
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)
