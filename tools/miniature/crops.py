"""Images to learn from, made once on the device: crops of the photographs at many scales, and drawn ones."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tools.miniature.edits import Edit

# Of all images, how many are drawn. Photographs alone are few, and lack flat and strong colours.
DRAWN = 0.25
# A crop's own pixels for one of the image's: enlarged up to three times, shrunk to two thirds.
SCALES = (0.33, 1.5)


def make_bank(photographs: Sequence[Tensor], count: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """`count` images (count, 3, height, width), uint8, of `size` = (width, height)."""
    width, height = size
    bank = torch.empty(count, 3, height, width, dtype=torch.uint8, device=device)
    sources = [photograph.to(device) for photograph in photographs]
    for i in range(count):
        drawn = torch.rand(()).item() < DRAWN
        picture = draw(width, height, device) if drawn else crop(sources, width, height)
        bank[i] = (jittered(picture).clamp(0, 1) * 255).round().to(torch.uint8)
    return bank


def crop(photographs: Sequence[Tensor], width: int, height: int) -> Tensor:
    """A part of one of the photographs (3, H, W in [0, 1]) at a random scale and a random small stretch."""
    source = photographs[int(torch.randint(len(photographs), ()))]
    stretch = math.exp(float(torch.empty(()).uniform_(-0.25, 0.25)))
    low, high = SCALES
    scale = low * (high / low) ** torch.rand(()).item()
    # The whole photograph, as the service enlarges it, is the commonest image of all.
    whole = min(source.shape[1] / height / stretch, source.shape[2] / width)
    scale = min(whole, scale if torch.rand(()).item() < 0.7 else whole)
    rows, columns = (
        min(round(length), most)
        for length, most in zip((height * scale * stretch, width * scale), source.shape[1:], strict=True)
    )
    top = int(torch.randint(source.shape[1] - rows + 1, ()))
    left = int(torch.randint(source.shape[2] - columns + 1, ()))
    part = source[:, top : top + rows, left : left + columns]
    return F.interpolate(part[None], size=(height, width), mode="bicubic", antialias=True)[0]


def jittered(picture: Tensor) -> Tensor:
    """Mirrored, channels shuffled, brightness and colours changed: each sometimes."""
    if torch.rand(()).item() < 0.5:
        picture = picture.flip(2)
    if torch.rand(()).item() < 0.2:
        picture = picture.flip(1)
    if torch.rand(()).item() < 0.5:
        picture = picture[torch.randperm(3, device=picture.device)]
    if torch.rand(()).item() < 0.7:
        gain = torch.empty(3, 1, 1, device=picture.device).uniform_(0.75, 1.25)
        gamma = math.exp(float(torch.empty(()).uniform_(-0.4, 0.4)))
        picture = (picture.clamp(0, 1) ** gamma) * gain
    return picture


def draw(width: int, height: int, device: torch.device) -> Tensor:
    """Clouds of one colour over clouds of another, with a few boxes and discs, soft or hard."""
    picture = clouds(width, height, device)
    y = torch.linspace(-1, 1, height, device=device).view(-1, 1)
    x = torch.linspace(-1, 1, width, device=device).view(1, -1)
    for _ in range(int(torch.randint(0, 7, ()))):
        cx, cy = torch.empty(2).uniform_(-1, 1).tolist()
        rx, ry = torch.empty(2).uniform_(0.03, 0.6).tolist()
        angle = float(torch.empty(()).uniform_(0, math.pi))
        u = ((x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)) / rx
        v = ((y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)) / ry
        distance = torch.maximum(u.abs(), v.abs()) if torch.rand(()).item() < 0.5 else (u**2 + v**2).sqrt()
        hardness = 10 ** float(torch.empty(()).uniform_(0.3, 2.3))
        share = ((1 - distance) * hardness).sigmoid() * float(torch.empty(()).uniform_(0.4, 1))
        picture = picture * (1 - share) + torch.rand(3, 1, 1, device=device) * share
    return picture


def clouds(width: int, height: int, device: torch.device) -> Tensor:
    """Noise whose amplitude falls with frequency, as that of photographs does, between two or three colours."""
    fall = float(torch.empty(()).uniform_(0.9, 2.2))
    frequency = (
        torch.fft.fftfreq(height, device=device).view(-1, 1) ** 2
        + torch.fft.rfftfreq(width, device=device).view(1, -1) ** 2
    ).sqrt()
    spectrum = torch.fft.rfft2(torch.randn(3, height, width, device=device))
    noise = torch.fft.irfft2(spectrum / (frequency + 1 / max(width, height)) ** fall, s=(height, width))
    noise = (noise - noise.mean(dim=(1, 2), keepdim=True)) / noise.std(dim=(1, 2), keepdim=True)
    mixing = torch.randn(3, 3, device=device) * float(torch.empty(()).uniform_(0.05, 0.3))
    colour = torch.rand(3, 1, 1, device=device)
    return colour + (mixing @ noise.flatten(1)).view_as(noise)


def batch_of(bank: Tensor, count: int, size: int) -> Tensor:
    """`count` random square parts of a bank's images, in [0, 1]: (count, 3, size, size)."""
    number, _, height, width = bank.shape
    pick = torch.randint(number, (count,), device=bank.device).view(-1, 1, 1)
    along = torch.arange(size, device=bank.device)
    rows = torch.randint(height - size + 1, (count, 1), device=bank.device) + along
    columns = torch.randint(width - size + 1, (count, 1), device=bank.device) + along
    found = bank[pick, :, rows.unsqueeze(2), columns.unsqueeze(1)]
    return found.permute(0, 3, 1, 2).float() / 255


def sometimes_edited(x: Tensor, edits: Sequence[Edit], share: float = 0.4) -> Tensor:
    """The same images, a share of them edited: the VAE must know what the edits look like."""
    count = int(len(x) * share)
    if count == 0:
        return x
    parts = [edits[int(torch.randint(len(edits), ()))](part) for part in x[:count].chunk(4)]
    return torch.cat([*parts, x[count:]])
