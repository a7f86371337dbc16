"""`edits-server calibrate`: renders prompts in exact and in each tier, and stores how far the tiers are from exact."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from serve_app.adapters.lora_root import LoraRoot
from serve_app.adapters.sources import LoraSources
from serve_app.commands.calibration_options import Wanted
from serve_app.commands.calibration_progress import Progress
from serve_app.config import AppConfig, ModelConfig, TierName
from serve_app.images.tier_loss import PairLoss, compare_pair, loss_of, relative_error
from serve_app.intake.admission.admission import Admission, ControlFile
from serve_app.intake.admission.parts import Parts
from serve_app.intake.admission.stored_images import StoredImages
from serve_app.intake.calibrations.cases import Cases, read_cases, training_cases
from serve_app.intake.calibrations.losses import MeasuredLosses
from serve_app.intake.calibrations.requests import (
    BY_COMMAND,
    details_of,
    exact_text,
    measured_on,
    own_adapters,
    request_of,
    tier_adapter_id,
)
from serve_app.intake.catalogue import Catalogue
from serve_app.intake.resources import Resources
from serve_app.intake.tenants import Caller
from serve_app.intake.training.files import TrainingFiles
from serve_app.jobs.calibrations import Calibration
from serve_app.models.architecture import architecture_of
from serve_app.storage.artifact_keys import control_image
from serve_app.tasks import EditPlan, Loss

# As wide as it has to be in a file: nothing is cut.
WIDTH = None if sys.stdout.isatty() else 100_000
console = Console(soft_wrap=True, highlight=False, markup=False, width=WIDTH)

OPERATOR = Caller(is_operator=True)


@dataclass(frozen=True)
class Work:
    """The cases of one set of LoRAs in exact (`tier` is None) or in one tier, checked and planned."""

    number: int
    tier: TierName | None
    plans: Sequence[EditPlan]
    files: dict[str, bytes]


@dataclass(frozen=True)
class Made:
    """An image, the latents that it was decoded from, and the seconds that the edit took."""

    image: PIL.Image.Image
    latents: NDArray[np.float32]
    seconds: float


def calibrate(config: AppConfig, wanted: Wanted) -> None:
    """Measure, print and store. Raises ServiceError, before torch is imported if a name or a file is at fault."""
    asyncio.run(_Calibration(config, wanted).run())


class _Calibration:
    def __init__(self, config: AppConfig, wanted: Wanted) -> None:
        self._wanted = wanted
        self._resources = resources = Resources(config)
        self._losses = MeasuredLosses(resources.store.calibrations)
        root = LoraRoot(config.lora_root)
        architectures = {model.id: architecture_of(model) for model in config.models}
        catalogue = Catalogue(config, root, architectures)
        self._training = TrainingFiles(root, catalogue, config.fetch.max_bytes)
        self._admission = Admission(
            config,
            resources.fetcher,
            resources.decoders,
            LoraSources(root, resources.fetcher, resources.artifacts, config.fetch.hub_hosts),
            architectures,
            StoredImages(resources.store, resources.artifacts),
            self._losses,
        )

    async def run(self) -> None:
        async with self._resources.opened():
            cases = await asyncio.to_thread(self._cases)
            qualities: list[TierName | None] = [None, *self._wanted.tiers]
            sets = range(len(self._wanted.sets))
            work = [await self._plan(number, tier, cases) for number in sets for tier in qualities]
            await self._measure(work, cases)

    def _cases(self) -> Cases:
        if self._wanted.prompts is not None:
            return read_cases(self._wanted.prompts)
        assert self._wanted.training_job is not None
        return training_cases(self._training, self._wanted.training_job, self._wanted.model.id, OPERATOR)

    async def _plan(self, number: int, tier: TierName | None, cases: Cases) -> Work:
        """The checked and planned cases of a set of LoRAs. Raises RequestError."""
        request = request_of(self._wanted.model, tier, self._wanted.sets[number], cases)
        await self._admission.check(request, len(request.prompts), OPERATOR, needs_lora=False)
        with self._resources.image_memory.hold(OPERATOR.tenant) as hold:
            admitted = await self._admission.admit(request, Parts(cases.files), OPERATOR, hold, calibrates=True)
            files = {sha256: await self._file(sha256, file) for sha256, file in admitted.control_files.items()}
            return Work(number, tier, [edit.plan for edit in admitted.edits], files)

    async def _file(self, sha256: str, file: ControlFile) -> bytes:
        """A control image: as it came, or from storage."""
        if file.data is not None:
            return file.data
        return await asyncio.to_thread(self._resources.artifacts.get, control_image(sha256))

    async def _measure(self, work: Sequence[Work], cases: Cases) -> None:
        """Make all images, those of one group of editors after the other, and store each tier when it is measured."""
        from serve_app.commands.calibration_images import free_memory

        exact: dict[int, tuple[Sequence[EditPlan], list[Made]]] = {}
        table = _table()
        progress = Progress(sum(len(each.plans) for each in work), console.print)
        for group, config in self._wanted.model.editor_groups.items():
            mine = [each for each in work if each.plans[0].editor_group == group]
            if mine:
                with progress.stopping():
                    await self._measure_group(config, mine, exact, cases, table, progress)
                # Nothing refers to the engine any more: the next one needs its memory.
                free_memory()
        console.print(table)

    async def _measure_group(
        self,
        config: ModelConfig,
        work: Sequence[Work],
        exact: dict[int, tuple[Sequence[EditPlan], list[Made]]],
        cases: Cases,
        table: Table,
        progress: Progress,
    ) -> None:
        """Measure what one engine makes. Exact images, which come first, are kept in `exact` by the set's number."""
        from serve_app.commands.calibration_images import make
        from serve_app.engine.torch_engine import TorchEngine

        engine = await asyncio.to_thread(TorchEngine.load, config)
        for each in work:
            begin = partial(progress.next, _title(each))
            made = await asyncio.to_thread(make, engine, each.plans, each.files, begin)
            if each.tier is None:
                exact[each.number] = (each.plans, made)
                continue
            loss = await self._keep(each, each.tier, *exact[each.number], made, cases)
            table.add_row(*_row(each, loss, exact[each.number][0]))

    async def _keep(
        self,
        work: Work,
        tier: TierName,
        plans: Sequence[EditPlan],
        exact: Sequence[Made],
        made: Sequence[Made],
        cases: Cases,
    ) -> Loss:
        model, adapters = self._wanted.model, own_adapters(plans[0])
        pairs = [_pair(*pair) for pair in zip(exact, made, strict=True)]
        loss = loss_of(pairs, measured_on(cases, plans), await self._resources.store.now())
        digest = model.tiers[tier].digest(tier_adapter_id(work.plans[0]))
        key = await self._losses.key(model, tier, digest, [use.id for use in adapters])
        details = details_of(model, model.tiers[tier], plans, cases, BY_COMMAND)
        await self._resources.store.calibrations.record(Calibration(key, loss, details))
        return loss


def _title(work: Work) -> str:
    names = " and ".join(use.path for use in own_adapters(work.plans[0]))
    return f"{work.tier or 'exact'}, {names or 'without LoRAs'}"


def _pair(exact: Made, tier: Made) -> PairLoss:
    error = relative_error(exact.latents, tier.latents)
    return compare_pair(exact.image, tier.image, exact.seconds, tier.seconds, error)


def _table() -> Table:
    table = Table(title="How far each tier is from exact: the worst image and the median")
    table.add_column("tier", overflow="fold")
    table.add_column("LoRAs", overflow="fold")
    table.add_column("exact has", overflow="fold")
    for name in ("images", "PSNR (dB)", "SSIM", "latents", "exact (s)", "tier (s)", "times"):
        table.add_column(name, justify="right", overflow="fold")
    return table


def _row(work: Work, loss: Loss, exact: Sequence[EditPlan]) -> list[Any]:
    names = ", ".join(use.path for use in own_adapters(work.plans[0]))
    return [
        work.tier,
        names or "none",
        exact_text(exact),
        str(loss.cases),
        f"{_decibels(loss.psnr_db.worst)} / {_decibels(loss.psnr_db.median)}",
        f"{loss.ssim.worst:.4f} / {loss.ssim.median:.4f}",
        "" if loss.latents is None else f"{loss.latents:.4f}",
        f"{loss.exact_s:.2f}",
        f"{loss.tier_s:.2f}",
        f"{loss.exact_s / loss.tier_s:.2f}",
    ]


def _decibels(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f}"
