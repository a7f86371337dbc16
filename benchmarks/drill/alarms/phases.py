"""The phases of the drill: what each causes, the alerts that have to fire, and how long it may take."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks.drill.alarms.causes import Causes


@dataclass(frozen=True)
class Phase:
    """`cause` runs until all `alerts` have fired, for `limit_s` at most. Without alerts, it runs that long."""

    name: str
    what: str
    cause: Callable[[Causes], Awaitable[None]]
    alerts: tuple[str, ...]
    limit_s: float


QUIET = Phase("quiet", "requests that succeed", Causes.succeed, (), 25.0)
# The last one: nothing runs afterwards.
GONE = Phase("gone", "every process of the cluster is killed", Causes.be_gone, ("EditsNotMeasured",), 60.0)
# The limits are three times as long as the phases took on two busy cores, or longer.
PHASES = (
    QUIET,
    Phase(
        "stalled",
        "every editor is held in an edit until EditsStuck fires; 60 requests wait behind these edits",
        Causes.stall,
        ("EditsStuck", "EditsPredictionBudgetBurnsFast", "EditsPredictionBudgetBurns"),
        300.0,
    ),
    Phase(
        "failing",
        "edits fail, need too much memory, kill their editor, compile 30 graphs each, use 12 LoRAs in turn where each "
        "editor has room for one; nobody listens at the address of webhooks",
        Causes.fail,
        (
            *("EditsFailing", "EditorsLost", "EditsOutOfMemory", "EditsRecompiling", "EditsColdAdapters"),
            *("EditsWebhooksGivenUp", "EditsSuccessBudgetBurnsFast", "EditsSuccessBudgetBurns"),
        ),
        400.0,
    ),
    Phase(
        "killed",
        "an ingress that has claimed three images or more is killed",
        Causes.kill_ingresses,
        ("EditsLeasesLost",),
        150.0,
    ),
    Phase(
        "idle",
        "the editors are killed and none can start; more images of 150 steps are posted than may wait",
        Causes.be_idle,
        ("EditsWithoutEditor", "EditsQueueLong", "EditsRefusedForLength"),
        150.0,
    ),
    Phase(
        "away",
        "a file is where the folder of artifact storage was",
        Causes.lose_storage,
        ("EditsStoreAway", "EditsLoopFailing", "EditsNotSwept"),
        400.0,
    ),
    GONE,
)
