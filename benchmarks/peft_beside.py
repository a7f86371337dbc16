"""How far merged weights are from their definition in bf16: ours, and PEFT's own fusing of the same file.

python -m benchmarks.peft_beside
"""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from serve_app.engine.deltas import Adapter
from serve_app.engine.merged_weights import Weights
from serve_app.models.registry import MODELS
from serve_app.pipeline import checkpoint, miniature
from tests.engine.test_formats import FORMATS, changes_of, make_file

SCALE = 0.8


def main() -> None:
    print("| format | modules | ours, error / change (rms) | PEFT, error / change (rms) |\n|---|---|---|---|")
    for name in FORMATS:
        tensors, meanings = make_file(name)
        tensors = {key: tensor if key.endswith(".alpha") else tensor.bfloat16() for key, tensor in tensors.items()}
        pipeline = checkpoint.read(miniature.ensure(MODELS["qwen_image"]), torch.bfloat16)
        originals = {name: pipeline.transformer.get_parameter(name).clone() for name in meanings}
        changes = changes_of(tensors)
        own = checkpoint.read(miniature.ensure(MODELS["qwen_image"]), torch.bfloat16).transformer
        Weights(own, "device").apply({name: (Adapter(changes, pinned=False), SCALE)})
        fused = fuse(pipeline, tensors)
        ours = theirs = change = 0.0
        for parameter, original in originals.items():
            difference = SCALE * changes[parameter].weight(torch.float64)
            merged = own.get_parameter(parameter)
            ours += (merged.double() - original.double() - difference).square().sum().item()
            change += difference.square().sum().item()
            if fused is None:
                continue
            module, _, kind = parameter.rpartition(".")
            layer = fused.get_submodule(module)
            weight = getattr(getattr(layer, "base_layer", layer), kind)
            theirs += (weight.double() - original.double() - difference).square().sum().item()
        peft = f"{(theirs / change) ** 0.5:.2%}" if fused is not None else "does not load"
        print(f"| {name} | {len(changes)} | {(ours / change) ** 0.5:.2%} | {peft} |")


def fuse(pipeline, tensors: dict[str, torch.Tensor]):
    """The transformer with the file fused by diffusers and PEFT; None if they raise."""
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, Path(folder) / "adapter.safetensors")
        try:
            pipeline.load_lora_weights(str(Path(folder) / "adapter.safetensors"), adapter_name="one")
            pipeline.fuse_lora(lora_scale=SCALE)
        except Exception:
            return None
    return pipeline.transformer


if __name__ == "__main__":
    main()
