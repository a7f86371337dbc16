"""A contact sheet: several images next to each other, each with a label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

# The longer side of a cell's image, the gap between cells, and the text's size, in pixels.
CELL, GAP, TEXT = 512, 12, 22


def contact_sheet(images: Sequence[PIL.Image.Image], labels: Sequence[str], columns: int = 5) -> PIL.Image.Image:
    """The images in rows, in order, at most `columns` in a row, each above its label."""
    columns = min(len(images), columns)
    rows = math.ceil(len(images) / columns)
    cells = [_fitted(image) for image in images]
    width, height = max(cell.width for cell in cells), max(cell.height for cell in cells)
    line = TEXT + 2 * GAP
    sheet = PIL.Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + line) + GAP), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    font = PIL.ImageFont.load_default(TEXT)
    for number, (cell, label) in enumerate(zip(cells, labels, strict=False)):
        left, top = GAP + (number % columns) * (width + GAP), GAP + (number // columns) * (height + line)
        sheet.paste(cell, (left, top))
        draw.text((left, top + height + GAP // 2), label, fill="black", font=font)
    return sheet


def save_sheet(path: Path, images: Sequence[PIL.Image.Image], labels: Sequence[str], columns: int = 5) -> None:
    """Write a contact sheet in the format of the path's suffix."""
    contact_sheet(images, labels, columns).save(path)


def _fitted(image: PIL.Image.Image) -> PIL.Image.Image:
    cell = image.convert("RGB")
    cell.thumbnail((CELL, CELL))
    return cell
