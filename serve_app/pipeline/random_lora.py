"""Makes random LoRAs in the trainer's own file format, for tests and the demo.

Names, metadata and dtype are those that ostris/ai-toolkit 0.12.26 writes for the Qwen-Image family:
14 modules per block and no alpha, so that the scale is the multiplier.
"""

import json
from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import save_file

from serve_app.models.architecture import BLOCK_LINEARS


def make_lora(
    transformer: QwenImageTransformer2DModel,
    target: Path,
    *,
    seed: int,
    rank: int = 4,
    strength: float = 1.0,
    trigger: str = "sks",
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write a random adapter that fits `transformer` to `target`.

    `strength` 1.0 gives each module's delta entries of the size that a fresh linear layer's weights have,
    so that multiplier 1.0 visibly changes the image.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for block in range(transformer.config.num_layers):
        for name in BLOCK_LINEARS:
            module = transformer.get_submodule(f"transformer_blocks.{block}.{name}")
            out_features, in_features = module.weight.shape
            down = torch.randn(rank, in_features, generator=generator)
            up = torch.randn(out_features, rank, generator=generator)
            size = (strength / (rank * in_features) ** 0.5) ** 0.5
            key = f"diffusion_model.transformer_blocks.{block}.{name}"
            tensors[f"{key}.lora_A.weight"] = (down * size).to(dtype)
            tensors[f"{key}.lora_B.weight"] = (up * size).to(dtype)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target, metadata=trainer_metadata(target.stem, trigger))


def trainer_metadata(name: str, trigger: str, version: str = "0.12.26", step: int = 2000) -> dict[str, str]:
    """The metadata that the trainer writes."""
    return {
        "format": "pt",
        "name": name,
        "software": json.dumps({"name": "ai-toolkit", "version": version}),
        "training_info": json.dumps({"step": step, "epoch": 1}),
        "ss_tag_frequency": json.dumps({f"1_{trigger}": {trigger: 1}}),
        "ss_base_model_version": "qwen_image",
    }
