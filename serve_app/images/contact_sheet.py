"""Contact sheets: small images in a grid with labeled rows and columns, and a legend above it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import PIL.Image
from PIL import ImageDraw, ImageFont, ImageOps

from serve_app.images.sizes import Size

# Pixels around the sheet, and between its cells.
MARGIN, GAP = 20, 6
MIN_FONT, MAX_FONT = 12, 22
# The width of row labels as a share of a cell's longer side, and how many lines of a long text are shown.
LABEL_SHARE, LEGEND_LINES, COLUMN_LINES = 0.9, 4, 4
# Characters of a text that are looked at.
MAX_TEXT_CHARS = 2_000
# What a sheet may have at most (pixels): 40 million take 120 MB.
MAX_PIXELS = 40_000_000
PAPER, INK, FAINT, EMPTY, FAILED = "#ffffff", "#1a1a1a", "#6b6b6b", "#ececec", "#f6d5d2"


@dataclass(frozen=True)
class SheetCell:
    """One image of a sheet, which `load` opens when its turn comes; without an image, a text in its place."""

    load: Callable[[], PIL.Image.Image | None] | None = None
    text: str = ""
    is_failure: bool = False


@dataclass(frozen=True)
class Sheet:
    """The contents of a sheet. Labels of `columns` and `rows` are lists of texts. `box` is a cell's size (pixels)."""

    title: str
    legend: Sequence[str]
    columns: Sequence[Sequence[str]]
    rows: Sequence[Sequence[str]]
    cells: Sequence[Sequence[SheetCell]]
    box: Size


@dataclass(frozen=True)
class _Layout:
    """Where things are (pixels): the grid starts at `left`, `top`."""

    size: Size
    left: int
    top: int
    title: Sequence[str]
    legend: Sequence[str]
    columns: Sequence[Sequence[str]]
    column_top: int


def box_of(size: Size, side: int) -> Size:
    """The size of a cell for images of `size`, so that its longer side has `side` pixels."""
    longer = max(size)
    return max(1, round(size[0] * side / longer)), max(1, round(size[1] * side / longer))


def size_of(sheet: Sheet) -> Size:
    """The size of the sheet (pixels), before anything is drawn."""
    return _layout(sheet).size


def draw(sheet: Sheet) -> PIL.Image.Image:
    """The sheet. Each image is opened, made smaller and forgotten before the next one."""
    layout = _layout(sheet)
    paper = PIL.Image.new("RGB", layout.size, PAPER)
    pen = ImageDraw.Draw(paper)
    size, line = _font_size(sheet.box), _line(sheet.box)
    y = MARGIN
    for text in layout.title:
        pen.text((MARGIN, y), text, INK, _font(size + 4))
        y += line + 6
    for text in layout.legend:
        pen.text((MARGIN, y), text, FAINT, _font(size))
        y += line
    for number, lines in enumerate(layout.columns):
        for place, text in enumerate(lines):
            x = layout.left + number * (sheet.box[0] + GAP)
            pen.text((x, layout.column_top + place * line), text, INK, _font(size))
    for number, labels in enumerate(sheet.rows):
        top = layout.top + number * (sheet.box[1] + GAP)
        _draw_row_label(pen, labels, (MARGIN, top), layout.left - MARGIN - 2 * GAP, sheet.box)
        for column, cell in enumerate(sheet.cells[number]):
            _draw_cell(paper, pen, cell, (layout.left + column * (sheet.box[0] + GAP), top), sheet.box)
    return paper


def _draw_row_label(
    pen: ImageDraw.ImageDraw, labels: Sequence[str], place: tuple[int, int], width: int, box: Size
) -> None:
    """The texts of a row's label. Long ones share the lines that short ones leave."""
    size, line = _font_size(box), _line(box)
    room = max(1, box[1] // line)
    y = place[1]
    for number, text in enumerate(labels):
        most = max(1, room - (len(labels) - number - 1))
        lines = wrapped(text, width, size, most)
        for each in lines:
            pen.text((place[0], y), each, INK, _font(size))
            y += line
        room -= len(lines)


def _draw_cell(
    paper: PIL.Image.Image, pen: ImageDraw.ImageDraw, cell: SheetCell, place: tuple[int, int], box: Size
) -> None:
    image = cell.load() if cell.load is not None else None
    if image is not None:
        small = fitted(image, box)
        paper.paste(small, (place[0] + (box[0] - small.width) // 2, place[1] + (box[1] - small.height) // 2))
        return
    corner = (place[0] + box[0] - 1, place[1] + box[1] - 1)
    pen.rectangle((place, corner), FAILED if cell.is_failure else EMPTY)
    size, line = _font_size(box), _line(box)
    text = cell.text or "deleted"
    for number, each in enumerate(wrapped(text, box[0] - 2 * GAP, size, max(1, box[1] // line - 1))):
        pen.text(
            (place[0] + GAP, place[1] + GAP + number * line), each, FAINT if not cell.is_failure else INK, _font(size)
        )


def fitted(image: PIL.Image.Image, box: Size) -> PIL.Image.Image:
    """The image as RGB, made smaller or larger so that it fits the box."""
    return ImageOps.contain(image.convert("RGB"), box, PIL.Image.Resampling.LANCZOS)


def _layout(sheet: Sheet) -> _Layout:
    size, line = _font_size(sheet.box), _line(sheet.box)
    left = MARGIN
    if any(any(labels) for labels in sheet.rows):
        left += max(160, round(max(sheet.box) * LABEL_SHARE)) + GAP
    width = left + len(sheet.columns) * (sheet.box[0] + GAP) - GAP + MARGIN
    # A narrow sheet still has room for its legend.
    width = max(width, 640)
    text_width = width - 2 * MARGIN
    title = wrapped(sheet.title, text_width, size + 4, 2)
    legend = [each for text in sheet.legend for each in wrapped(text, text_width, size, LEGEND_LINES)]
    columns = [_lines(labels, sheet.box[0], size) for labels in sheet.columns]
    column_top = MARGIN + len(title) * (line + 6) + len(legend) * line + line // 2
    top = column_top + max(map(len, columns), default=0) * line + GAP
    height = top + len(sheet.rows) * (sheet.box[1] + GAP) - GAP + MARGIN
    return _Layout((width, height), left, top, title, legend, columns, column_top)


def _lines(labels: Sequence[str], width: int, size: int) -> list[str]:
    """The lines of a column's label."""
    return [each for text in labels for each in wrapped(text, width, size, COLUMN_LINES)]


def wrapped(text: str, width: int, size: int, most: int) -> list[str]:
    """The text in at most `most` lines of `width` pixels; what does not fit is left out, with an ellipsis."""
    lines = [""]
    for word in text[:MAX_TEXT_CHARS].split():
        for part in _parts(word, width, size):
            joined = f"{lines[-1]} {part}".strip()
            if _length(joined, size) <= width:
                lines[-1] = joined
            else:
                lines.append(part)
        if len(lines) > most:
            break
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and _length(f"{last}…", size) > width:
        last = last[:-1]
    return [*lines[: most - 1], f"{last}…"]


def _parts(word: str, width: int, size: int) -> list[str]:
    """A word, cut into pieces that fit into a line: a path, or a sentence in a language without spaces."""
    parts = [""]
    for character in word[:1000]:
        if parts[-1] and _length(parts[-1] + character, size) > width:
            parts.append("")
        parts[-1] += character
    return parts


def _font_size(box: Size) -> int:
    return min(MAX_FONT, max(MIN_FONT, max(box) // 15))


def _line(box: Size) -> int:
    return round(_font_size(box) * 1.35)


@lru_cache(8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, which it brings with it. It has Latin letters only."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _length(text: str, size: int) -> float:
    return _font(size).getlength(text)
