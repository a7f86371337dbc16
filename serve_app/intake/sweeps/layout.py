"""How the cells of a sweep lie on a sheet: which axes are rows, which columns, and what their labels say. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import PurePosixPath
from typing import Any

from serve_app.errors import InvalidParameter
from serve_app.intake.sweeps.axes import by_step, step_of_path
from serve_app.jobs.sweeps.records import Axes
from serve_app.policy.sweep_order import Place

# The axes, with their names in `Place`: from those that vary least from row to row to those that vary most.
FIELDS: Mapping[str, str] = {
    "control_images": "control_image",
    "prompts": "prompt",
    "seeds": "seed",
    "profiles": "profile",
    "qualities": "quality",
    "checkpoints": "checkpoint",
    "multipliers": "multiplier",
}
# Which axis lies across the sheet unless the client says so: the first of these with several values.
ACROSS = ("checkpoints", "multipliers", "profiles", "seeds", "prompts", "control_images", "qualities")
NO_LORA = "no LoRA"
# The index of a value on each of some axes.
Indices = Mapping[str, int | None]


@dataclass(frozen=True)
class Grid:
    """The rows and columns of a sheet, each with the indices of its values."""

    axes: Axes
    rows: Sequence[Indices]
    columns: Sequence[Indices]

    def place(self, row: Indices, column: Indices) -> Place:
        """The place of the cell in a row and a column. Without a LoRA it is the same for all multipliers."""
        indices = dict.fromkeys(FIELDS.values(), 0) | dict(row) | dict(column)
        if self.axes.checkpoints[indices["checkpoint"] or 0] is None:
            indices["multiplier"] = None
        return Place(**indices)  # type: ignore[arg-type]

    def labels(self, indices: Indices) -> list[str]:
        """What the label of a row or column says."""
        return [label_of(self.axes, name, indices[field]) for name, field in FIELDS.items() if field in indices]

    @property
    def fixed(self) -> list[str]:
        """The axes that have only one value, as sentences of a legend."""
        return [
            label_of(self.axes, name, 0) for name in FIELDS if name not in varied(self.axes) and _says(self.axes, name)
        ]


def varied(axes: Axes) -> list[str]:
    """The axes with several values."""
    return [name for name in FIELDS if len(getattr(axes, name)) > 1]


def grid_of(axes: Axes, rows: Sequence[str] | None = None, columns: Sequence[str] | None = None) -> Grid:
    """The grid of a sweep. `rows` and `columns` name axes; an axis that neither names is added to the rows.

    Raises InvalidParameter for a name that is no axis, or that is named twice.
    """
    named = [*(rows or ()), *(columns or ())]
    for name in named:
        if name not in FIELDS or named.count(name) > 1:
            raise InvalidParameter(
                f"rows and columns: {name!r} must be an axis and be named once; the axes are {', '.join(FIELDS)}",
                {"parameter": "columns" if columns and name in columns else "rows"},
            )
    several = varied(axes)
    if columns is None:
        columns = [name for name in ACROSS if name in several and name not in (rows or ())][:1]
    rows = list(rows or ())
    rows += [name for name in several if name not in rows and name not in columns]
    return Grid(axes, _combinations(axes, rows), _combinations(axes, columns))


def _combinations(axes: Axes, names: Sequence[str]) -> list[Indices]:
    """All combinations of the values of these axes, the last one varying most. Without a LoRA, multipliers are one."""
    found: dict[tuple[int | None, ...], Indices] = {}
    for indices in product(*(_in_order(axes, name) for name in names)):
        combination: dict[str, int | None] = {FIELDS[name]: index for name, index in zip(names, indices, strict=True)}
        if "multiplier" in combination and "checkpoint" in combination:
            checkpoint = combination["checkpoint"]
            if checkpoint is not None and axes.checkpoints[checkpoint] is None:
                combination["multiplier"] = None
        found.setdefault(tuple(combination.values()), combination)
    return list(found.values())


def _in_order(axes: Axes, name: str) -> Sequence[int]:
    """The indices of an axis in the order of the sheet: checkpoints of one folder by step, whoever was named first."""
    if name != "checkpoints":
        return range(len(getattr(axes, name)))
    folders = [None if path is None else by_step(path)[0] for path in axes.checkpoints]

    def key(index: int) -> tuple[Any, ...]:
        path = axes.checkpoints[index]
        return (folders.index(folders[index]), *(by_step(path) if path is not None else ()))

    return sorted(range(len(folders)), key=key)


def _says(axes: Axes, name: str) -> bool:
    """Whether a fixed axis has something to say."""
    if name == "multipliers":
        return any(path is not None for path in axes.checkpoints)
    if name == "qualities":
        return False
    return name != "control_images" or any(axes.control_images)


def label_of(axes: Axes, name: str, index: int | None) -> str:
    """What a label says of a value."""
    if index is None:
        return ""
    value = getattr(axes, name)[index]
    if name == "checkpoints":
        return checkpoint_label(value, axes)
    if name == "control_images":
        return f"control image {index + 1}" if len(axes.control_images) > 1 else f"control image {_short(value)}"
    if name == "prompts":
        return str(value) or "(empty prompt)"
    if name == "profiles":
        return f"profile {value}" if value else "the service's profile"
    word = {"seeds": "seed", "multipliers": "multiplier", "qualities": "quality"}[name]
    return f"{word} {value:g}" if isinstance(value, float) else f"{word} {value}"


def checkpoint_label(path: str | None, axes: Axes) -> str:
    """The step of a checkpoint, or its name; with its folder and name if others have other ones."""
    if path is None:
        return NO_LORA
    step = step_of_path(path)
    if _stems(axes.checkpoints) > 1 or len(axes.checkpoints) == 1:
        return path.removesuffix(".safetensors")
    return f"step {step}" if step is not None else "final" if len(axes.checkpoints) > 1 else path


@lru_cache(8)
def _stems(checkpoints: tuple[str | None, ...]) -> int:
    """How many names checkpoints have, without their steps."""
    return len({_stem(each) for each in checkpoints if each is not None})


def _stem(path: str) -> str:
    """The name of a checkpoint without its step."""
    stem = path.removesuffix(".safetensors")
    return stem.rpartition("_")[0] if step_of_path(path) is not None else stem


def _short(images: Sequence[str]) -> str:
    return ", ".join(PurePosixPath(image.partition(":")[2]).name[:12] for image in images)
