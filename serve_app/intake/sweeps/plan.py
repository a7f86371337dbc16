"""From a sweep to the plans of its cells: all checks of all cells are made here, and nothing is committed."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from serve_app.adapters.lora_root import LoraRoot
from serve_app.concurrency import background
from serve_app.errors import InvalidParameter, LoraNotFound, TrainingJobNotFound
from serve_app.intake.admission.admission import Admission, Admitted, ControlFile, gather_all
from serve_app.intake.admission.parts import NO_PARTS
from serve_app.intake.admission.plan import PlannedEdit
from serve_app.intake.resources import Resources
from serve_app.intake.sweeps import axes as sweep_axes
from serve_app.intake.sweeps.axes import Files
from serve_app.intake.tenants import Caller
from serve_app.intake.training.files import TrainingFiles
from serve_app.jobs.sweeps.records import Axes, NewCell, SweepDefinition
from serve_app.models.repeat_request import STORED_IMAGE
from serve_app.policy.sweep_order import Place, places
from serve_app.schemas.requests import InferenceRequest
from serve_app.schemas.sweeps import CheckpointRange, SweepAxes
from serve_app.storage import artifact_keys
from serve_app.training.folders import TrainingJob, no_training_job

# How many patterns of paths one sweep may have.
MAX_PATTERNS = 50
# What the cells that are admitted together share: the indices of checkpoint, profile and quality.
Group = tuple[int, int, int]


@dataclass(frozen=True)
class PlannedSweep:
    """What a sweep would do. `definition` and `cells` are complete; `new_seconds` is the predicted time of GPUs (s)."""

    definition: SweepDefinition
    cells: tuple[NewCell, ...]
    new_seconds: float | None


def predicted_s(cells: Sequence[NewCell], speeds: Mapping[str, float]) -> float | None:
    """The time of GPUs (s) that cells are predicted to take, None if one of their editor groups was never measured.

    `speeds` are in FLOP/s, by editor group.
    """
    if not speeds or any(cell.plan.editor_group not in speeds for cell in cells):
        return None
    return round(sum(cell.work / speeds[cell.plan.editor_group] for cell in cells), 1)


def group_of(place: Place) -> Group:
    return place.checkpoint, place.profile, place.quality


class SweepPlanner:
    """Plans sweeps and their extensions."""

    def __init__(self, resources: Resources, admission: Admission, lora_root: LoraRoot, files: TrainingFiles) -> None:
        self._admission = admission
        self._lora_root = lora_root
        self._files = files
        self._image_memory = resources.image_memory
        self._store = resources.store
        self._artifacts = resources.artifacts

    async def files(self, axes: SweepAxes, caller: Caller) -> Files:
        """What patterns and training jobs among the checkpoints stand for, of what the caller may use.

        Raises LoraNotFound and StorageFailed.
        """
        values = axes.checkpoints or []
        names = {value.training_job for value in values if isinstance(value, CheckpointRange)}
        patterns = [value for value in values if isinstance(value, str) and sweep_axes.is_pattern(value)]
        if len(patterns) > MAX_PATTERNS:
            raise InvalidParameter(
                f"axes.checkpoints has {len(patterns)} patterns, and at most {MAX_PATTERNS} are accepted",
                {"parameter": "checkpoints", "max": MAX_PATTERNS},
            )
        by_pattern = await self._lora_root.in_thread(partial(self._matching, patterns, caller)) if patterns else {}
        try:
            if unseen := [name for name in sorted(names) if not caller.may_see_training_job(name)]:
                raise no_training_job(unseen[0])
            jobs = {name: await self._files.in_thread(partial(self._files.folders.job, name)) for name in sorted(names)}
        except TrainingJobNotFound as error:
            raise LoraNotFound(error.message, error.details) from error
        unfinished = await self._files.in_thread(partial(self._unfinished, values, jobs)) if jobs else ()
        return Files(by_pattern, jobs, frozenset(unfinished))

    def _unfinished(self, values: Sequence[object], jobs: Mapping[str, TrainingJob]) -> set[str]:
        """The files in the ranges of training jobs that are not whole yet. Blocks."""
        ranges = [value for value in values if isinstance(value, CheckpointRange)]
        named = (file for each in ranges for file in jobs[each.training_job].between(each.from_step, each.to_step))
        return {file.path for file in named if self._files.weights(file).info.state == "incomplete"}

    def _matching(self, patterns: Sequence[str], caller: Caller) -> dict[str, list[str]]:
        """The files of each pattern that is not itself the name of a file. Blocks."""
        paths = [file.path for file in self._lora_root.files() if caller.may_use_lora(file.path)]
        names = set(paths)
        return {pattern: sweep_axes.matching(pattern, paths) for pattern in patterns if pattern not in names}

    async def plan(
        self,
        base: InferenceRequest,
        axes: Axes,
        caller: Caller,
        known: Collection[Place] = (),
        known_images: int = 0,
        notes: Sequence[str] = (),
    ) -> PlannedSweep:
        """Make all checks of all cells, fetch and store what they need, and plan those that are not `known`.

        The first `known_images` values of the axis `control_images` are those of a sweep that is extended. `notes` are
        sentences about what was found so far.
        """
        has_lora = any(path is not None for path in axes.checkpoints)
        for request in self._groups(base, axes, known).values():
            await self._admission.check(request, len(request.prompts), caller, needs_lora=not has_lora)
        admitted: dict[Group, Admitted] = {}
        with self._image_memory.hold(caller.tenant) as hold:
            # All groups have the same prompts, and so the same control images.
            first = next(iter(self._groups(base, axes, known).values()))
            sent = await self._admission.control_files(first, NO_PARTS, caller, hold)
            # Two names of one image are one value, so places are known only now.
            axes = sweep_axes.settled(axes, known_images, {name: file.sha256 for name, file in sent.items()})
            images = {f"{STORED_IMAGE}{file.sha256}": file for file in sent.values()}
            for group, request in self._groups(base, axes, known).items():
                admitted[group] = await self._admission.admit_with(request, images, NO_PARTS, caller)
            await self._keep_images(sent)
        new = [place for place in places(axes.lengths) if place not in known]
        cells = await asyncio.to_thread(self._planned_cells, new, axes, admitted)
        body, kept = sweep_axes.stored(base, axes)
        ignored = next(iter(admitted.values())).ignored
        found = dict.fromkeys([*notes, *(note for each in admitted.values() for note in each.notes)])
        seconds = predicted_s(cells, await self._store.sweeps.speeds())
        return PlannedSweep(SweepDefinition(body, kept, list(found), ignored), cells, seconds)

    def _groups(self, base: InferenceRequest, axes: Axes, known: Collection[Place]) -> dict[Group, InferenceRequest]:
        """The requests of the groups that have new cells; all if none has.

        A checkpoint whose cells are all known may have been deleted since.
        """
        needed = {group_of(place) for place in places(axes.lengths) if place not in known}
        return {group: each for group, each in sweep_axes.requests_of(base, axes) if group in needed or not needed}

    async def _keep_images(self, images: Mapping[str, ControlFile]) -> None:
        """Store the control images. Their bytes are free afterwards."""
        await gather_all(
            background.shielded(
                asyncio.to_thread(self._artifacts.put_missing, artifact_keys.control_image(file.sha256), file.data)
            )
            for file in images.values()
            if file.data is not None
        )

    def _planned_cells(
        self, new: Sequence[Place], axes: Axes, admitted: Mapping[Group, Admitted]
    ) -> tuple[NewCell, ...]:
        cells = []
        for place in new:
            group = admitted[group_of(place)]
            index = (place.prompt * len(axes.control_images) + place.control_image) * len(axes.seeds) + place.seed
            cells.append(self._cell(place, axes, group, group.edits[index]))
        return tuple(cells)

    def _cell(self, place: Place, axes: Axes, admitted: Admitted, edit: PlannedEdit) -> NewCell:
        """The cell at a place, whose plan is that of the same request sent alone."""
        if place.multiplier is not None:
            of_tier = tuple(use for use in edit.plan.adapters if use.of_tier)
            first, *others = edit.plan.adapters[len(of_tier) :]
            adapters = (*of_tier, replace(first, scale=axes.multipliers[place.multiplier]), *others)
            edit = replace(edit, plan=replace(edit.plan, adapters=adapters))
        sizes = {file.sha256: file.size_bytes for file in admitted.control_files.values()}
        files = {artifact_keys.control_image(sha256): sizes[sha256] for sha256 in edit.plan.control_images}
        for use in edit.plan.adapters:
            key = self._artifacts.key_of(use.url)
            if key is not None and use.receipt is not None:
                files[key] = use.receipt.size_bytes
        return NewCell(place, edit.plan, self._admission.work(admitted, edit), files)
