"""The metrics that an editor records."""

from serve_app.engine.protocol import Edited, HeldAdapters
from serve_app.tasks import EditDone
from serve_app.telemetry.metrics import (
    ADAPTER_EDITS,
    CACHE_BYTES,
    COMPILATIONS,
    EVICTIONS,
    FAILED,
    GPU_SECONDS,
    MADE,
    PREVIEW_SECONDS,
    PREVIEWS,
    STAGE_SECONDS,
    SWAP_SECONDS,
    SWAPS,
    Meter,
    Metric,
)

# How often the figures of the host cache are recorded (s).
CACHE_REPORT_S = 5.0


class EditorMetrics:
    """Records an editor's metrics, each tagged with its editor group: the tag `model`."""

    def __init__(self, meter: Meter, group: str, adapters: HeldAdapters) -> None:
        self._meter = meter
        self._group = group
        self._adapters = adapters
        self._recorded_evictions = 0

    def edit_with_adapters(self, *, warm: bool) -> None:
        """An edit that uses adapters has arrived. `warm`: all of them are in host memory already."""
        self._record(ADAPTER_EDITS, warm="true" if warm else "false")

    def finished_edit(self, edited: Edited, done: EditDone, device_s: float) -> None:
        """An image is stored; its edit occupied the device for `device_s` seconds."""
        self._record(GPU_SECONDS, device_s)
        for stage, seconds in done.timings.items():
            self._record(STAGE_SECONDS, seconds, stage=stage)
        if edited.swapped:
            self._record(SWAPS)
            self._record(SWAP_SECONDS, edited.timings["apply_adapters"])
        self._record(COMPILATIONS, edited.compilations)

    def preview(self, device_s: float) -> None:
        """A step preview is stored; it occupied the device for `device_s` seconds."""
        self._record(PREVIEWS, outcome=MADE)
        self._record(PREVIEW_SECONDS, device_s)

    def failed_preview(self) -> None:
        """A step preview could not be made or stored."""
        self._record(PREVIEWS, outcome=FAILED)

    async def cache(self) -> None:
        """The host cache's size and evictions. To be called regularly: Ray forgets a gauge that is not set again."""
        self._record(CACHE_BYTES, self._adapters.size_bytes)
        evictions = self._adapters.evictions
        self._record(EVICTIONS, evictions - self._recorded_evictions)
        self._recorded_evictions = evictions

    def _record(self, metric: Metric, value: float = 1.0, **tags: str) -> None:
        self._meter.record(metric, value, model=self._group, **tags)
