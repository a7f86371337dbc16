"""The photographs that the miniature learns from and is measured on: those that come inside packages of PyPI.

`unpack` takes them out of these wheels, and fails if one is missing or is another image than was trained on.
"""

import bz2
import hashlib
import io
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

SKIMAGE = "scikit_image-0.16.2"
SKLEARN = "scikit_learn-1.9.1"
SCIPY = "scipy-1.5.4"
MATPLOTLIB = "matplotlib-3.11.2"


@dataclass(frozen=True)
class Photograph:
    """`wheel` is how the wheel's file name begins, `member` the path in it, `sha256` how the file's digest begins."""

    name: str
    wheel: str
    member: str
    licence: str
    sha256: str


CC0 = "CC0"
PUBLIC_DOMAIN = "public domain"
CC_BY = "CC BY 2.0"
# Distributed as sample data with the package, which says no more.
UNSTATED = "not stated by the package"

TRAINING = (
    Photograph("rocket", SKIMAGE, "skimage/data/rocket.jpg", f"SpaceX, {PUBLIC_DOMAIN}", "c2dd0de7c538"),
    Photograph("hubble", SKIMAGE, "skimage/data/hubble_deep_field.jpg", f"NASA, {PUBLIC_DOMAIN}", "3a19c5dd8a92"),
    Photograph(
        "immunohistochemistry", SKIMAGE, "skimage/data/ihc.png", "no known copyright restrictions", "f8dd1aa387dd"
    ),
    Photograph("retina", SKIMAGE, "skimage/data/retina.jpg", CC0, "38a07f36f27f"),
    Photograph("motorcycle-left", SKIMAGE, "skimage/data/motorcycle_left.png", UNSTATED, "db18e9c41576"),
    Photograph("motorcycle-right", SKIMAGE, "skimage/data/motorcycle_right.png", UNSTATED, "5fc913ae870e"),
    Photograph("brick", SKIMAGE, "skimage/data/brick.png", CC0, "7966caf324f6"),
    Photograph("grass", SKIMAGE, "skimage/data/grass.png", CC0, "b6b6022426b3"),
    Photograph("gravel", SKIMAGE, "skimage/data/gravel.png", CC0, "c48615b451bf"),
    Photograph(
        "coins", SKIMAGE, "skimage/data/coins.png", "Brooklyn Museum, no known copyright restrictions", "f8d773fc9cfa"
    ),
    Photograph("moon", SKIMAGE, "skimage/data/moon.png", UNSTATED, "78739619d11f"),
    Photograph("page", SKIMAGE, "skimage/data/page.png", UNSTATED, "341a6f0a6155"),
    Photograph("china", SKLEARN, "sklearn/datasets/images/china.jpg", f"danielbuechele, {CC_BY}", "8378025ad251"),
    Photograph("flower", SKLEARN, "sklearn/datasets/images/flower.jpg", f"vultilion, {CC_BY}", "a77f6ec41e35"),
    Photograph("raccoon", SCIPY, "scipy/misc/face.dat", PUBLIC_DOMAIN, "9d8b0b4d0813"),
    Photograph("ascent", SCIPY, "scipy/misc/ascent.dat", PUBLIC_DOMAIN, "e8a849394844"),
    Photograph(
        "hopper",
        MATPLOTLIB,
        "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
        f"US Navy, {PUBLIC_DOMAIN}",
        "a8ca6d734765",
    ),
)

# Held out of training: what the figures are measured on.
HELD_OUT = (
    Photograph("astronaut", SKIMAGE, "skimage/data/astronaut.png", f"NASA, {PUBLIC_DOMAIN}", "88431cd9653c"),
    Photograph("chelsea", SKIMAGE, "skimage/data/chelsea.png", f"Stefan van der Walt, {CC0}", "596aa1e7cb87"),
    Photograph("coffee", SKIMAGE, "skimage/data/coffee.png", f"Rachel Michetti, {CC0}", "cc02f8ca188b"),
)


class PhotographMissing(Exception):
    """A photograph is not where the script was told to look."""


def unpack(wheels: Path, folder: Path) -> None:
    """Write every photograph as PNG to `folder`, out of the wheels in `wheels`. Raises PhotographMissing."""
    folder.mkdir(parents=True, exist_ok=True)
    for photograph in (*TRAINING, *HELD_OUT):
        found = sorted(wheels.glob(f"{photograph.wheel}*.whl"))
        if not found:
            raise PhotographMissing(f"{photograph.name}: no wheel {photograph.wheel}* in {wheels}")
        with zipfile.ZipFile(found[-1]) as wheel:
            data = wheel.read(photograph.member)
        if not hashlib.sha256(data).hexdigest().startswith(photograph.sha256):
            raise PhotographMissing(f"{photograph.name}: {photograph.member} in {found[-1].name} is another picture")
        _decode(photograph.member, data).save(folder / f"{photograph.name}.png")


def _decode(member: str, data: bytes) -> PIL.Image.Image:
    if member.endswith("face.dat"):
        # scipy keeps the bare pixels, compressed.
        return PIL.Image.fromarray(np.frombuffer(bz2.decompress(data), np.uint8).reshape(768, 1024, 3))
    if member.endswith("ascent.dat"):
        return PIL.Image.fromarray(np.asarray(pickle.loads(data)).astype(np.uint8)).convert("RGB")
    return PIL.Image.open(io.BytesIO(data)).convert("RGB")


def read(folder: Path, photographs: tuple[Photograph, ...]) -> dict[str, PIL.Image.Image]:
    """The photographs in `folder`, by name. Raises PhotographMissing."""
    pictures = {}
    for photograph in photographs:
        file = folder / f"{photograph.name}.png"
        if not file.is_file():
            raise PhotographMissing(f"{file} is not there: see tools/train_miniature.py --help")
        pictures[photograph.name] = PIL.Image.open(file).convert("RGB")
    return pictures


def as_tensor(picture: PIL.Image.Image) -> Tensor:
    """(3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
