"""The files that commands write: images, contact sheets, and what is said about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import PIL.Image
import typer

from edits_client.cli.context import plain, print_json, print_line, say
from edits_client.cli.sheet import save_sheet
from edits_client.images import SUFFIXES, Image

# An image, and what tells it from others of the same command.
Labeled = tuple[str, Image]


def format_of(path: Path | None, given: str | None) -> str:
    """The output format: as given, or by the suffix of the file to write, or PNG."""
    by_suffix = {suffix: name for name, suffixes in SUFFIXES.items() for suffix in suffixes if name != "jpg"}
    if path is None:
        return given or "png"
    found = by_suffix.get(path.suffix.lower())
    if found is None:
        raise typer.BadParameter(f"{path}: the name must end with {', '.join(by_suffix)}", param_hint="--output")
    if given not in (None, found):
        raise typer.BadParameter(f"{path} cannot hold {given}", param_hint="--output")
    return found


def check_paths(output: Path | None, sheet: Path | None) -> None:
    """Refuse files that cannot be written before anything is made for them."""
    for path, option in ((output, "--output"), (sheet, "--sheet")):
        if path is not None and not path.expanduser().absolute().parent.is_dir():
            raise typer.BadParameter(f"the folder of {path} does not exist", param_hint=option)
    if sheet is not None and sheet.suffix.lower() not in PIL.Image.registered_extensions():
        raise typer.BadParameter(f"{sheet}: unknown kind of image; use .png", param_hint="--sheet")


def save_all(
    finished: Sequence[Labeled], source: str, output: Path | None, sheet: Path | None = None, *, as_json: bool
) -> None:
    """Write images of `source`, which is a file or an id, and their contact sheet, and print what was written."""
    images = [image for _, image in finished]
    paths = [image.save(path) for image, path in zip(images, file_names(images, source, output), strict=False)]
    if sheet is not None and images:
        labels = [f"{label} seed {image.seed}".strip() for label, image in finished]
        save_sheet(sheet.expanduser(), [image.pil() for image in images], labels)
    if as_json:
        described = [image_json(label, image, path) for (label, image), path in zip(finished, paths, strict=True)]
        print_json({"images": described, "sheet": None if sheet is None else str(sheet)})
        return
    for (label, image), path in zip(finished, paths, strict=True):
        facts = ", ".join([*([label] if label else []), f"{image.width}x{image.height}", f"seed {image.seed}"])
        # The seconds are those of all images of the request.
        print_line(f"{plain(str(path))}  {facts}, request {image.request_id} ({image.gpu_seconds:.2f} GPU s)")
    if sheet is not None and images:
        print_line(plain(str(sheet)))
    for note in dict.fromkeys(note for image in images for note in image.notes):
        say(f"note: {plain(note)}")


def file_names(images: Sequence[Image], source: str, output: Path | None) -> Iterator[Path]:
    """The files to write: `output`, with a number before its suffix if there are several images.

    By default they are in the current folder, with names that no file has.
    """
    if output is not None and len(images) == 1:
        yield output
    elif output is not None:
        for number in range(len(images)):
            yield output.with_stem(f"{output.stem}-{number}")
    else:
        stem = Path(source.partition("?")[0]).stem or "image"
        yield from (path for path in free_names(f"{stem}-edit", images))


def free_names(stem: str, images: Sequence[Image]) -> Iterator[Path]:
    """A name for each image that no file has."""
    taken: set[Path] = set()
    for image in images:
        suffix = SUFFIXES.get(image.format, (f".{image.format}",))[0]
        numbered = (Path(f"{stem}-{number}{suffix}") for number in count(2))
        path = Path(f"{stem}{suffix}")
        while path in taken or path.exists():
            path = next(numbered)
        taken.add(path)
        yield path


def image_json(label: str, image: Image, path: Path) -> dict[str, Any]:
    return {
        "path": str(path),
        "label": label,
        "request_id": image.request_id,
        "index": image.index,
        "format": image.format,
        "width": image.width,
        "height": image.height,
        "seed": image.seed,
        "gpu_seconds": image.gpu_seconds,
        "url": image.url,
        "notes": image.notes,
    }
