"""Distil the miniature to eight steps without guidance, as a LoRA, in about two minutes on one GPU.

    python -m tools.distill_miniature --photographs out/miniature/photographs --out samples/loras/few_steps

The photographs are those of tools/train_miniature.py. The training ends by the clock.
"""

import argparse
from pathlib import Path

import PIL.Image
import torch

from serve_app.models.architecture import TRAINED_MINIATURE
from serve_app.models.profile import REFERENCE
from serve_app.models.recipe import make_recipe
from serve_app.models.registry import MODELS
from serve_app.pipeline import checkpoint, conditioning
from serve_app.tasks import EditPlan
from tools.miniature import crops, distillation, evaluation, pairs, photographs
from tools.miniature import vae_training as vaes
from tools.miniature.clock import Log

SEED = 20261130
EDIT = "qwen_image_edit"
# Side (pixels), images of a bank, images in a batch.
SIZES = ((256, 384, 32), (512, 192, 16), (1024, 64, 6))
TRIAL = ((64, 4, 2), (96, 3, 1), (128, 2, 1))
# Photographs that the prompts are embedded with.
EMBEDDED_WITH = ("raccoon", "china", "hopper", "flower")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the adapter")
    parser.add_argument("--log", type=Path, default=Path("out/few_steps.jsonl"))
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--trial", action="store_true", help="see on a CPU that it runs")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(SEED)
    log = Log(arguments.log)
    pictures = photographs.read(arguments.photographs, photographs.TRAINING)
    pipeline = checkpoint.read(TRAINED_MINIATURE, torch.float32).to(device)
    pipeline.transformer.requires_grad_(False)
    embedded = EMBEDDED_WITH[:1] if arguments.trial else EMBEDDED_WITH
    prompts = [embed(pipeline, evaluation.at_size(pictures[name])) for name in embedded]
    vaes.single_frame(pipeline.vae)
    sources = [photographs.as_tensor(picture) for picture in pictures.values()]
    subjects = []
    for side, count, batch in TRIAL if arguments.trial else SIZES:
        bank = crops.make_bank(sources, count, (side, side), device)
        latents = [pairs.latents_of(pipeline.vae, part.float() / 255) for part in torch.split(bank, 8)]
        subjects.append(distillation.Subject(side, torch.cat(latents), batch))
    log("few steps", device=str(device), sides=[subject.side for subject in subjects])
    target = arguments.out / "few_steps.safetensors"
    distillation.train(pipeline.transformer, subjects, prompts, arguments.seconds, target, log)


def embed(pipeline: checkpoint.Pipeline, picture: PIL.Image.Image) -> distillation.Prompts:
    groups = pairs.embed(pipeline, EDIT, [text for text in pairs.texts_of_instructions() if text.prompt], picture)
    plan = EditPlan(EDIT, REFERENCE.name, "", "", 1024, 1024, 8, 1.0, 0, "png", ())
    recipe = make_recipe(MODELS[EDIT], REFERENCE, plan, [picture.size])
    encoder = pipeline.text_encoder
    seen = [conditioning.encoder_image(picture, recipe.encoder_sizes[0], encoder.device, encoder.dtype)]
    with torch.no_grad():
        empty = conditioning.encode_prompt(pipeline, "", seen, recipe, encoder.device)
    return distillation.Prompts(groups, empty)


if __name__ == "__main__":
    main()
