"""Fit the colors of step previews to the VAE of a checkpoint, and say how good they are.

    python -m tools.fit_latent_colors CHECKPOINT                 # a folder, a hub id, or a miniature's name
    python -m tools.fit_latent_colors CHECKPOINT --write NAME    # also writes them into latent_colors.json

They are fitted to the synthetic images that an engine uses for an unknown VAE, and to the photographs of this
repository. Each figure is the PSNR (dB) of a photograph in these colors against the same photograph decoded by the VAE
and made 8 times smaller. Of the fitted colors it is measured on a photograph that they were not fitted to.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKLQwenImage
from torch import Tensor

from serve_app.config import CheckpointConfig
from serve_app.models.registry import MODELS
from serve_app.pipeline import checkpoint
from serve_app.pipeline.latent_colors import KNOWN, LatentColors, fit, known_colors, samples, synthetic_images

ROOT = Path(__file__).parent.parent
PHOTOGRAPHS = ("samples/astronaut.jpg", "tests/photographs/chelsea.jpg", "tests/photographs/coffee.jpg")
# The side of the photographs (pixels).
SIDE = 256
CPU = torch.device("cpu")

Pair = tuple[Tensor, Tensor]


def photograph(path: str) -> Tensor:
    """A photograph as (3, SIDE, SIDE) in [-1, 1]."""
    image = PIL.Image.open(ROOT / path).convert("RGB").resize((SIDE, SIDE), PIL.Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def psnr_db(colors: LatentColors, pair: Pair) -> float:
    latents, expected = pair
    return 10 * float(np.log10(4 / torch.square(colors.of(latents) - expected).mean().item()))


def entry_of(name: str, vae: AutoencoderKLQwenImage, colors: LatentColors) -> dict[str, Any]:
    """An entry of latent_colors.json."""
    return {
        "name": name,
        "source": "tools/fit_latent_colors.py",
        "latents_mean": [round(value, 6) for value in vae.config.latents_mean],
        "latents_std": [round(value, 6) for value in vae.config.latents_std],
        "weights": [[round(value, 6) for value in channel] for channel in colors.weights.T.tolist()],
        "bias": [round(value, 6) for value in colors.bias.flatten().tolist()],
    }


def write(entry: dict[str, Any]) -> None:
    """Put an entry into latent_colors.json, in the place of one with the same name."""
    others = [other for other in json.loads(KNOWN.read_text()) if other["name"] != entry["name"]]
    KNOWN.write_text(as_json([*others, entry]))


def as_json(entries: list[dict[str, Any]]) -> str:
    """JSON with one line per channel."""
    parts = []
    for entry in entries:
        lines = [f'"{key}": {json.dumps(value)}' for key, value in entry.items() if key != "weights"]
        rows = ",\n      ".join(json.dumps(row) for row in entry["weights"])
        lines.append(f'"weights": [\n      {rows}\n    ]')
        parts.append("  {\n    " + ",\n    ".join(lines) + "\n  }")
    return "[\n" + ",\n".join(parts) + "\n]\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--model", default="qwen_image_edit", choices=MODELS, help="the checkpoint's model")
    parser.add_argument("--write", metavar="NAME", help="write the colors into latent_colors.json under this name")
    options = parser.parse_args()
    folder = checkpoint.find(CheckpointConfig(checkpoint=options.checkpoint), MODELS[options.model])
    vae = AutoencoderKLQwenImage.from_pretrained(folder, subfolder="vae").eval()
    synthetic = [samples(vae, image, CPU) for image in synthetic_images()]
    photographs = [samples(vae, photograph(path), CPU) for path in PHOTOGRAPHS]
    known = known_colors(vae)
    for number, (path, pair) in enumerate(zip(PHOTOGRAPHS, photographs, strict=True)):
        others = photographs[:number] + photographs[number + 1 :]
        figures = {
            "fitted": psnr_db(fit([*synthetic, *others]), pair),
            "fitted to synthetic images alone": psnr_db(fit(synthetic), pair),
        }
        if known is not None:
            figures["in latent_colors.json"] = psnr_db(known, pair)
        listed = ", ".join(f"{name}: {value:.1f} dB" for name, value in figures.items())
        sys.stdout.write(f"{path}: {listed}\n")
    entry = entry_of(options.write or options.checkpoint, vae, fit([*synthetic, *photographs]))
    if options.write:
        write(entry)
    else:
        sys.stdout.write(as_json([entry]))


if __name__ == "__main__":
    main()
