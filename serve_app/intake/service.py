"""The service behind the routes: builds its parts, and runs them from the start of an ingress to its end."""

from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from serve_app.adapters.lora_root import LoraRoot
from serve_app.adapters.sources import LoraSources
from serve_app.concurrency import background
from serve_app.config import AppConfig, IngressSettings, MalformedPreset
from serve_app.intake.admission.admission import Admission
from serve_app.intake.admission.quality import Losses
from serve_app.intake.admission.stored_images import StoredImages
from serve_app.intake.answers.events import Events
from serve_app.intake.answers.previews import Previews
from serve_app.intake.answers.queries import Queries
from serve_app.intake.answers.watch import Watch
from serve_app.intake.calibrations.answers import CalibrationAnswers
from serve_app.intake.calibrations.current import CurrentLosses
from serve_app.intake.calibrations.losses import MeasuredLosses
from serve_app.intake.calibrations.runs import CalibrationRuns
from serve_app.intake.callers.rates import RateLimits
from serve_app.intake.catalogue import Catalogue
from serve_app.intake.keys import Keys
from serve_app.intake.openai.calls import OpenAICalls
from serve_app.intake.operation import Operation
from serve_app.intake.presets import Presets
from serve_app.intake.resources import Resources
from serve_app.intake.signed_urls import SignedUrls
from serve_app.intake.starts import Starts
from serve_app.intake.submission import Submissions
from serve_app.intake.sweeps.archive import SweepArchives
from serve_app.intake.sweeps.events import SweepEvents
from serve_app.intake.sweeps.sheet import SweepSheets
from serve_app.intake.sweeps.sweeps import Sweeps
from serve_app.intake.sweeps.table import SweepTables
from serve_app.intake.tenants import tenant_limits
from serve_app.intake.training.decoding import Decoding
from serve_app.intake.training.files import TrainingFiles
from serve_app.intake.training.jobs import TrainingJobs
from serve_app.intake.training.pairs import TrainingPairs
from serve_app.intake.training.previews import TrainingPreviews
from serve_app.intake.uploads import Uploads
from serve_app.intake.workload import Workload
from serve_app.jobs.limits.quotas import Quotas
from serve_app.models.architecture import architecture_of
from serve_app.telemetry.metrics import NO_METER, Meter
from serve_app.workers.backlog_report import BacklogReport
from serve_app.workers.dispatcher import Dispatcher, EditorCount
from serve_app.workers.editing import Editors
from serve_app.workers.sweep_cells import SweepCells
from serve_app.workers.sweeper import Sweeper
from serve_app.workers.warm_list import WarmListWriter
from serve_app.workers.webhooks import Deliverer

# Makes the coroutine of a worker, which works until it is cancelled.
Run = Callable[[], Coroutine[Any, Any, None]]


class Service:
    """All parts of the service in one ingress. Routes use the public ones while `running` is entered."""

    def __init__(
        self,
        config: AppConfig,
        editors: Editors,
        editor_count: EditorCount,
        meter: Meter = NO_METER,
        ready_without_editor: Callable[[], Collection[str]] = frozenset,
        drain_s: float = 0.0,
        editors_starting: Callable[[], Mapping[str, int]] = dict,
        losses: Losses | None = None,
    ) -> None:
        """`ready_without_editor` names the models that need no running editor to be ready, and `editors_starting`
        counts editors, as `Workload` says. `losses` knows what was measured of tiers; None: the job database.

        When the service stops, edits that editors have begun get `drain_s` seconds to finish. Raises ConfigRefused,
        CheckpointRefused, StorageRefused or KeysRefused for a config that cannot be used.
        """
        self.keys = Keys(config.auth, tenant_limits(config.jobs, IngressSettings()))
        self.signed_urls = SignedUrls(config.auth, self.keys)
        config.refuse_missing_folders()
        architectures = {model.id: architecture_of(model) for model in config.models}
        self.config = config
        self._drain_s = drain_s
        self.resources = resources = Resources(config)
        store, artifacts, decoders = resources.store, resources.artifacts, resources.decoders
        self._watch = Watch(store, meter)
        self.rate_limits = RateLimits(store.rates)
        self.workload = Workload(config, store, editor_count, ready_without_editor, editors_starting)
        self.operation = Operation(store, self.workload)
        self.starts = Starts(artifacts)
        self._dispatcher = Dispatcher(
            store, editors, artifacts, config.jobs, self.workload.editor_counts, meter, self._watch.wake
        )
        lora_root = LoraRoot(config.lora_root)
        sources = LoraSources(lora_root, resources.fetcher, artifacts, config.fetch.hub_hosts)
        stored_images = StoredImages(store, artifacts)
        measured = MeasuredLosses(store.calibrations)
        admission = Admission(
            config, resources.fetcher, decoders, sources, architectures, stored_images, losses or measured
        )
        current = CurrentLosses(config, store.calibrations, measured, admission.loras.described)
        self._sweeper = Sweeper(store, artifacts, config.jobs, meter, config.sweeps.keep_s, current.mark)
        self.catalogue = Catalogue(config, lora_root, architectures)
        self.presets = Presets(admission.check_preset, sources.is_remote, meter)
        self.submissions = Submissions(
            config,
            resources,
            admission,
            self.presets,
            self._dispatcher,
            self._sweeper,
            self.workload.editor_counts,
            meter,
        )
        self.uploads = Uploads(config, resources, self._sweeper)
        self._sweep_cells = SweepCells(store, config.sweeps, self._limits_of_sweeps, self._dispatcher.wake, meter)
        files = TrainingFiles(lora_root, self.catalogue, config.fetch.max_bytes)
        self.sweeps = Sweeps(
            config,
            resources,
            admission,
            self.presets,
            lora_root,
            files,
            self._dispatcher,
            self._sweeper,
            self._sweep_cells,
        )
        self.sweep_events = SweepEvents(store)
        self.calibrations = CalibrationAnswers(config, store.calibrations, current)
        self.calibration_runs = CalibrationRuns(
            config, store, artifacts, measured, self.submissions, self.uploads, files, meter
        )
        decoding = Decoding(resources)
        self.training_jobs = TrainingJobs(config, files, decoding)
        self.training_previews = TrainingPreviews(config, files, self.submissions, self.uploads, store)
        self.training_pairs = TrainingPairs(files, self.training_previews, store, artifacts, decoding)
        self.sweep_sheets = SweepSheets(resources)
        self.sweep_tables = SweepTables(resources, lora_root, files)
        self.sweep_archives = SweepArchives(resources, self.sweep_tables)
        self.previews = Previews(artifacts)
        self.queries = Queries(config, store, artifacts, self._watch, self.workload, self.previews, self.signed_urls)
        self.events = Events(store, self._watch, self.previews)
        models = [model.id for model in config.models]
        self.openai_calls = OpenAICalls(self.submissions, self.presets, self.queries, store, models, meter)
        tier_adapters = {model.id: model.tier_adapters for model in config.models}
        self._warm_list = WarmListWriter(store, artifacts, admission.loras.named, tier_adapters, meter)
        self._workers = self._workers_of(meter)

    def _workers_of(self, meter: Meter) -> Sequence[Run]:
        """Everything that runs next to requests, in the order of its start."""
        config, store = self.config, self.resources.store
        report = BacklogReport(self.workload.backlogs, self.workload.editor_counts, meter)
        workers = [self._watch.run, self._dispatcher.run, report.run, self._warm_list.run, self._sweeper.run]
        workers += [self.presets.run, self._sweep_cells.run, self.calibration_runs.run]
        if config.webhooks.secret is not None:
            workers.append(Deliverer(store.webhooks, config.webhooks, self.queries.webhook_payload, meter).run)
        return workers

    def _limits_of_sweeps(self, tenant: str) -> tuple[int | None, Quotas]:
        limits = self.keys.limits_of(tenant)
        return limits.max_queued, limits.quotas

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the resources and start the workers; stop and close everything at the exit. To be entered once.

        What was started is stopped as well if the start fails or is cancelled half way. Raises StoreUnavailable.
        """
        async with self.resources.opened(), AsyncExitStack() as exits:
            for run in self._workers:
                exits.push_async_callback(background.cancel, background.start(run()))
            # The first thing at the exit: running edits still need all the other parts.
            exits.push_async_callback(self._dispatcher.drain, self._drain_s)
            yield

    def reconfigure(self, settings: IngressSettings, malformed: Mapping[str, MalformedPreset] = {}) -> None:
        """Apply the settings that change in place. `malformed` are presets that are not among them, by name."""
        jobs = self.config.jobs
        self.keys.limits = tenant_limits(jobs, settings)
        self.resources.store.requests.max_queued = settings.max_queued or jobs.max_queued
        self._warm_list.keep(settings.keep_warm)
        self.presets.replace(settings.presets, malformed)
