"""`edits-server compare`: how different two images are, and which of their parameters differ."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from rich.console import Console

from serve_app.storage.os_errors import reason_of

EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA"}
# Names that the comparison of parameters ignores.
LEFT_OUT = re.compile(r"^effective\.(why\.|request\.|preset$|loras\[\d+\]\.id$)")


@dataclass(frozen=True)
class Difference:
    """How different two images of the same size are, in RGB (RGBA if one has alpha) with 8 bits per channel.

    `share` is the share of pixels that differ in any channel, `largest` the largest difference in levels (of 255).
    `psnr` is in dB: 10 log10(255^2 / mean squared error), infinite for equal images.
    """

    share: float
    largest: int
    psnr: float


def difference(a: PIL.Image.Image, b: PIL.Image.Image) -> Difference:
    """Compare two images. Raises ValueError if their sizes differ, or if one has more than 8 bits per channel."""
    if a.size != b.size:
        raise ValueError(f"their sizes differ: {a.width}x{a.height} and {b.width}x{b.height}")
    deep = {a.mode, b.mode} - EIGHT_BIT_MODES
    if deep:
        raise ValueError(f"only images of 8 bits per channel can be compared, not {', '.join(sorted(deep))}")
    # If one image has alpha, it counts as a channel of both.
    mode = "RGBA" if a.has_transparency_data or b.has_transparency_data else "RGB"
    apart = np.abs(np.asarray(a.convert(mode), dtype=np.int16) - np.asarray(b.convert(mode), dtype=np.int16))
    error = float(np.square(apart, dtype=np.float64).mean())
    psnr = 10 * math.log10(255**2 / error) if error else math.inf
    return Difference(float(apart.any(axis=2).mean()), int(apart.max()), psnr)


def parameters(image: PIL.Image.Image) -> dict[str, Any] | None:
    """The records `effective` and `runtime` in a PNG of this service, with dotted paths as keys; None if it has none.

    Leaves out what may differ for equal images (the reason for a value, the name of a preset, and the id of a LoRA's
    file), and the request, which repeats other values.
    """
    found = {}
    for key in ("effective", "runtime"):
        try:
            found[key] = json.loads(image.info[key])
        except (KeyError, ValueError, TypeError, RecursionError):
            # Not there, or another program's text under the same name.
            continue
    flat = {name: value for name, value in _flat(found) if not LEFT_OUT.search(name)}
    return flat or None


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested dicts and lists, by its dotted path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{name}[{index}]")
    else:
        yield name, value


def compare_files(a: Path, b: Path) -> int:
    """Print how different two images are, and which of their parameters differ.

    Returns 0 if every pixel is equal, 1 if not, 2 if the images cannot be compared.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False)
    try:
        images = [PIL.Image.open(path) for path in (a, b)]
        known = [parameters(image) for image in images]
        found = difference(*images)
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        console.print(f"cannot be compared: {reason_of(error) if isinstance(error, OSError) else error}")
        return 2
    console.print(_pixels(found, images[0]))
    for path, record in zip((a, b), known, strict=True):
        if record is None:
            console.print(f"{path} carries no parameters; PNGs of this service do")
    for line in _parameters_that_differ(*known):
        console.print(line)
    return 0 if found.share == 0 else 1


def _pixels(found: Difference, image: PIL.Image.Image) -> str:
    """The line about the pixels."""
    if found.share == 0:
        return f"identical: all {image.width}x{image.height} pixels"
    return (
        f"different: {found.share:.4%} of the pixels, by at most {found.largest} of 255 levels, "
        f"PSNR {found.psnr:.2f} dB"
    )


def _parameters_that_differ(a: dict[str, Any] | None, b: dict[str, Any] | None) -> list[str]:
    """The lines about parameters; none if one of the images carries no parameters."""
    if a is None or b is None:
        return []
    names = [name for name in dict(a) | b if a.get(name) != b.get(name)]
    if not names:
        return ["no parameter differs"]
    return ["parameters that differ:", *(f"  {name}: {a.get(name)!r} | {b.get(name)!r}" for name in names)]
