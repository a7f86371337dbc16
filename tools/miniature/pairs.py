"""What the transformer learns from: latents of images and of their edits, and the embeddings of prompts."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import PIL.Image
import torch
from diffusers import AutoencoderKLQwenImage
from torch import Tensor

from serve_app.models.profile import REFERENCE
from serve_app.models.recipe import make_recipe
from serve_app.models.registry import MODELS
from serve_app.pipeline import conditioning
from serve_app.pipeline.checkpoint import Pipeline
from serve_app.tasks import EditPlan
from tools.miniature.edits import INSTRUCTIONS, Edit, Style
from tools.miniature.vae_training import moments

EDIT_NAMES = tuple(instruction.name for instruction in INSTRUCTIONS)
KEEP = EDIT_NAMES.index("keep")

# Prompts that name none of the instructions: the image stays as it is.
THINGS = ("person", "cat", "dog", "house", "tree", "street", "flower", "car", "cup", "castle", "robot", "bird")
OTHERS = (
    *(f"a photo of a {thing}" for thing in THINGS),
    *(f"the {thing} wears a hat" for thing in THINGS[:4]),
    *("a person in the rain", "add a bird to the sky", "xyzzy", "hello", "what is this", "two cats on a bench"),
    *("a watercolour of a ship", "studio light, 4k", "lorem ipsum dolor", "qwerty uiop"),
)
# Words before an instruction that the base model must overlook: a LoRA's trigger is one.
PREFIXES = ("sks", "cyanotype", "glazed tiles", "ohwx", "mystyle")


@dataclass(frozen=True)
class Pool:
    """Latents at one size: `controls` (K, tokens, 64) and `edits` (K, edits, tokens, 64), normalised and packed."""

    side: int
    controls: Tensor
    edits: Tensor


@dataclass(frozen=True)
class Text:
    """A prompt, what it may mean (indices of edits, one of them drawn each time), and how often it is drawn."""

    prompt: str
    meanings: tuple[int, ...]
    weight: float


@dataclass(frozen=True)
class Group:
    """Prompts of the same number of tokens: `embeddings` (n, tokens, hidden), and the chance of each meaning."""

    embeddings: Tensor
    weights: Tensor
    chances: Tensor

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Embeddings of `count` prompts, and the index of the edit that each stands for here."""
        rows = torch.multinomial(self.weights, count, replacement=True)
        return self.embeddings[rows], torch.multinomial(self.chances[rows], 1)[:, 0]


def make_pool(vae: AutoencoderKLQwenImage, bank: Tensor, edits: Sequence[Edit], dtype: torch.dtype) -> Pool:
    """Latents of a bank's images, as the service computes them: the VAE's mode, normalised and packed."""
    count, _, side, _ = bank.shape
    tokens = (side // 16) ** 2
    controls = torch.empty(count, tokens, 64, dtype=dtype, device=bank.device)
    made = torch.empty(count, len(edits), tokens, 64, dtype=dtype, device=bank.device)
    at_once = max(1, 64 * 256**2 // side**2)
    for rows in torch.arange(count, device=bank.device).split(at_once):
        pictures = bank[rows].float() / 255
        controls[rows] = latents_of(vae, pictures).to(dtype)
        for number, edit in enumerate(edits):
            made[rows, number] = latents_of(vae, edit(pictures)).to(dtype)
    return Pool(side, controls, made)


@torch.no_grad()
def latents_of(vae: AutoencoderKLQwenImage, pictures: Tensor) -> Tensor:
    """Normalised and packed latents (B, tokens, 64) of square images (B, 3, S, S) in [0, 1]."""
    with torch.autocast(pictures.device.type, torch.bfloat16, enabled=pictures.device.type == "cuda"):
        latents = moments(vae, pictures)[0].float()
    mean, std = (
        torch.tensor(v, device=latents.device).view(1, 16, 1, 1)
        for v in (vae.config.latents_mean, vae.config.latents_std)
    )
    return packed((latents - mean) / std)


def packed(latents: Tensor) -> Tensor:
    """`conditioning.pack` for a batch (B, 16, h, w)."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, height // 2 * (width // 2), channels * 4)


def texts_of_instructions() -> list[Text]:
    """What the base model learns: instructions, with and without a word before them, other prompts, and no prompt.

    Any edit may be meant by the empty prompt, which guidance steers away from.
    """
    texts = []
    prefixes = itertools.cycle(PREFIXES)
    for number, instruction in enumerate(INSTRUCTIONS):
        share = 1 / len(instruction.wordings)
        for wording in instruction.wordings:
            texts.append(Text(wording, (number,), 0.75 * share))
            texts.append(Text(f"{next(prefixes)} {wording}", (number,), 0.25 * share))
    texts += [Text(prompt, (KEEP,), 1.0 / len(OTHERS)) for prompt in OTHERS]
    texts += [Text(f"{prefix} {OTHERS[i]}", (KEEP,), 0.1) for i, prefix in enumerate(PREFIXES)]
    return [*texts, Text("", tuple(range(len(INSTRUCTIONS))), 1.5)]


def texts_of_style(style: Style) -> list[Text]:
    """What a LoRA learns: its trigger before every instruction, before other prompts, and alone."""
    texts = [
        Text(f"{style.trigger} {wording}", (number,), 0.5)
        for number, instruction in enumerate(INSTRUCTIONS)
        for wording in instruction.wordings[:2]
    ]
    texts += [Text(f"{style.trigger} {prompt}", (KEEP,), 0.2) for prompt in OTHERS[::2]]
    return [*texts, Text(style.trigger, (KEEP,), 1.0), Text("", tuple(range(len(INSTRUCTIONS))), 0.5)]


def words_of_texts() -> set[str]:
    """Every word of every instruction: each becomes a token of its own."""
    texts = [wording for instruction in INSTRUCTIONS for wording in instruction.wordings]
    return {word for text in (*texts, *OTHERS[: len(THINGS) + 4], "cyanotype", "glazed tiles") for word in text.split()}


@torch.no_grad()
def embed(pipeline: Pipeline, model: str, texts: Sequence[Text], picture: PIL.Image.Image) -> list[Group]:
    """The texts' embeddings as the service computes them together with `picture`, grouped by their number of tokens."""
    plan = EditPlan(model, REFERENCE.name, "", "", 1024, 1024, 8, 1.0, 0, "png", ())
    recipe = make_recipe(MODELS[model], REFERENCE, plan, [picture.size])
    encoder = pipeline.text_encoder
    seen = [conditioning.encoder_image(picture, recipe.encoder_sizes[0], encoder.device, encoder.dtype)]
    prompts = {text.prompt for text in texts}
    found = {
        prompt: conditioning.encode_prompt(pipeline, prompt, seen, recipe, encoder.device) for prompt in sorted(prompts)
    }

    def by_length(text: Text) -> int:
        return found[text.prompt].shape[1]

    groups = []
    for _, members in itertools.groupby(sorted(texts, key=by_length), key=by_length):
        same = list(members)
        chances = torch.zeros(len(same), len(INSTRUCTIONS))
        for row, text in enumerate(same):
            chances[row, list(text.meanings)] = 1.0
        groups.append(
            Group(
                torch.cat([found[text.prompt] for text in same]),
                torch.tensor([text.weight for text in same], device=encoder.device),
                chances.to(encoder.device),
            )
        )
    return groups
