"""What the miniature is taught: instructions with their true edits, and the styles of its LoRAs.

Every edit is a function of images (B, 3, H, W) in [0, 1] to images of the same shape and range. Lengths
are in pixels of an image of about one megapixel. Torch alone, so that tests can measure against it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Picture = Tensor
Edit = Callable[[Picture], Picture]

# Rec. 601 luma, as PIL's convert("L") has it.
LUMA = (0.299, 0.587, 0.114)
BLUR_SIGMA = 10.0
BLOCK = 16
FRAME = 32


@dataclass(frozen=True)
class Instruction:
    """One thing to do, in several wordings (the first is the one that docs and tests use).

    What is not `promised` was learnt too, but not well enough on every photograph.
    """

    name: str
    wordings: tuple[str, ...]
    apply: Edit
    promised: bool = True


@dataclass(frozen=True)
class Style:
    """What one LoRA adds to whatever edit is asked for; `file` is its path under samples/loras."""

    name: str
    trigger: str
    file: str
    apply: Edit
    kind: str


def luma(x: Picture) -> Picture:
    weights = torch.tensor(LUMA, device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
    return (x * weights).sum(dim=1, keepdim=True)


def tinted(grey: Picture, dark: tuple[float, ...], light: tuple[float, ...]) -> Picture:
    """A grey image (B, 1, H, W) as shades between two colours."""
    low, high = (torch.tensor(c, device=grey.device, dtype=grey.dtype).view(1, 3, 1, 1) for c in (dark, light))
    return low + (high - low) * grey


def blurred(x: Picture, sigma: float) -> Picture:
    """Gaussian blur; what lies beyond the border is what lies on it."""
    radius = int(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1).repeat(x.shape[1], 1, 1, 1)
    x = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="replicate"), kernel, groups=x.shape[1])
    return F.conv2d(F.pad(x, (0, 0, radius, radius), mode="replicate"), kernel.transpose(2, 3), groups=x.shape[1])


def grey(x: Picture) -> Picture:
    return luma(x).expand_as(x).contiguous()


def night(x: Picture) -> Picture:
    muted = 0.5 * x + 0.5 * luma(x)
    return (muted * torch.tensor((0.25, 0.4, 0.75), device=x.device, dtype=x.dtype).view(1, 3, 1, 1)).clamp(0, 1)


def pixelated(x: Picture) -> Picture:
    return F.interpolate(F.avg_pool2d(x, BLOCK), scale_factor=BLOCK, mode="nearest")


def framed(x: Picture) -> Picture:
    inside = x[:, :, FRAME:-FRAME, FRAME:-FRAME]
    return F.pad(inside, (FRAME, FRAME, FRAME, FRAME), value=1.0)


def sketched(x: Picture) -> Picture:
    """Dark lines where the brightness changes, on white paper."""
    smooth = blurred(luma(x), 2.0)
    right = F.pad(smooth[..., 1:] - smooth[..., :-1], (0, 1))
    down = F.pad(smooth[..., 1:, :] - smooth[..., :-1, :], (0, 0, 0, 1))
    lines = blurred((right**2 + down**2 + 1e-8).sqrt(), 1.5)
    return (1 - 14 * lines).clamp(0.1, 1).expand_as(x).contiguous()


INSTRUCTIONS = (
    Instruction(
        "keep",
        ("keep the picture as it is", "keep it as it is", "change nothing", "do not change anything", "copy the image"),
        lambda x: x,
    ),
    Instruction(
        "invert",
        (
            "invert the colours",
            "invert the image",
            "invert all colors",
            "turn it into a negative",
            "make a negative of the photo",
        ),
        lambda x: 1 - x,
    ),
    Instruction(
        "black and white",
        (
            "make it black and white",
            "turn it black and white",
            "convert the photo to black and white",
            "make it grey",
            "remove all colours",
            "make it monochrome",
        ),
        grey,
    ),
    Instruction(
        "darker",
        ("make it darker", "darken the image", "make the picture dark", "darken it", "a darker photo"),
        lambda x: 0.4 * x,
    ),
    Instruction(
        "brighter",
        ("make it brighter", "brighten the image", "make the picture bright", "brighten it", "a brighter photo"),
        lambda x: 1 - (1 - x) ** 2.2,
    ),
    Instruction(
        "sepia",
        (
            "make it sepia",
            "turn it sepia",
            "make it look like an old photo",
            "give it a sepia tone",
            "an old photograph",
        ),
        lambda x: tinted(luma(x), (0.13, 0.07, 0.02), (1.0, 0.9, 0.68)),
    ),
    Instruction(
        "night",
        ("make it night", "turn day into night", "at night", "the same scene at night", "make it look like night"),
        night,
    ),
    Instruction(
        "contrast",
        (
            "more contrast",
            "increase the contrast",
            "raise the contrast",
            "give it more contrast",
            "make the contrast stronger",
        ),
        lambda x: ((x - 0.5) * 2.2 + 0.5).clamp(0, 1),
    ),
    Instruction(
        "swap",
        ("swap red and blue", "exchange red and blue", "swap the red and blue channels", "swap blue and red"),
        lambda x: x.flip(1),
    ),
    Instruction(
        "blur",
        ("blur it", "blur the image", "make it blurry", "make the picture soft", "put it out of focus"),
        lambda x: blurred(x, BLUR_SIGMA),
    ),
    Instruction(
        "pixelate",
        ("pixelate it", "pixelate the image", "make it pixelated", "turn it into pixel art", "make big pixels"),
        pixelated,
    ),
    Instruction(
        "frame",
        ("put a white frame around it", "add a white frame", "add a frame", "give it a white border", "frame it"),
        framed,
        promised=False,
    ),
    Instruction(
        "sketch",
        (
            "turn it into a pencil sketch",
            "make it a pencil drawing",
            "draw it with a pencil",
            "sketch it",
            "draw the outlines",
        ),
        sketched,
        promised=False,
    ),
)


def poster(x: Picture) -> Picture:
    """Four inks, by brightness."""
    level = blurred(luma(x), 2.0)
    inks = ((0.02, 0.17, 0.29), (0.84, 0.12, 0.13), (0.44, 0.62, 0.66), (0.99, 0.90, 0.68))
    made = tinted(torch.zeros_like(level), inks[0], inks[0])
    for below, ink in zip((0.22, 0.45, 0.68), inks[1:], strict=True):
        # A step of a few grey levels, not of one: its edge is as smooth as the brightness.
        share = ((level - below) * 25 + 0.5).clamp(0, 1)
        made = made * (1 - share) + tinted(torch.ones_like(level), ink, ink) * share
    return made


def cyanotype(x: Picture) -> Picture:
    return tinted(luma(x), (0.02, 0.12, 0.32), (0.94, 0.97, 1.0))


def tiles(x: Picture) -> Picture:
    """Glazed tiles: strong flat colours, a light edge above and to the left, dark grout below and to the right."""
    flat = pixelated(x)
    flat = (luma(flat) + 1.6 * (flat - luma(flat))).clamp(0, 1)
    place = [torch.arange(length, device=x.device) % BLOCK for length in x.shape[2:]]
    rows, columns = torch.meshgrid(*place, indexing="ij")
    light = ((rows < 3) | (columns < 3)).to(x.dtype)
    grout = ((rows >= BLOCK - 3) | (columns >= BLOCK - 3)).to(x.dtype)
    return (flat + 0.25 * light * (1 - flat)) * (1 - grout) + 0.12 * grout


STYLES = (
    Style("poster", "sks", "my_lora_job/my_lora.safetensors", poster, "lora"),
    Style("cyanotype", "cyanotype", "cyanotype/cyanotype.safetensors", cyanotype, "lokr"),
    Style("tiles", "glazed tiles", "glazed_tiles/glazed_tiles.safetensors", tiles, "lora"),
)
