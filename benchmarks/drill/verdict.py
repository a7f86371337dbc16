"""Evaluation of a drill: how long each kill had an effect, and which problems were found. Pure functions."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.drill.load import Answer, Order
from benchmarks.drill.notes import Note
from benchmarks.drill.store import Seen

EDITOR, INGRESS, CONNECTION, CLUSTER = "editor", "ingress", "connection", "cluster"
# Faults of the drills on several machines.
NODE, CABLE, HEAD, HANG, SLOW, DATABASE, STORAGE = "node", "cable", "head", "hang", "slow", "database", "storage"
REDIS = "redis"
# Faults that lose no editor's work: an image continues when the database shows its next change.
WITHOUT_LOSS = (CONNECTION, HEAD, SLOW, DATABASE, STORAGE, REDIS)
KILLS_OF_EACH = 5


@dataclass(frozen=True)
class Kill:
    """A fault: what was killed, when (seconds since the epoch), and what it was doing at that moment.

    `images` are those that it hit: the image of an editor, the claims of an ingress, and all running images for a
    connection or the cluster.
    """

    at: float
    kind: str
    pid: int
    images: tuple[str, ...]
    doing: str


@dataclass(frozen=True)
class Recovery:
    """Seconds from a kill until work on the last of its images was resumed, and until the last of them ended."""

    taken_up_s: float
    ended_s: float


def recovery(kill: Kill, history: Mapping[str, Sequence[Seen]], notes: Mapping[str, Sequence[Note]]) -> Recovery | None:
    """The recovery from a kill; None if work on one of its images was never resumed or never ended.

    Work on an image is resumed when another editor begins it or its result is recorded; where no editor was hit, when
    the database shows the image's next change.
    """
    taken_up, ended = [], []
    for image in kill.images:
        later = [seen for seen in history[image] if seen.at > kill.at]
        end = [seen.at for seen in later if seen.state == "ended"]
        begun = [
            note.at
            for note in notes.get(image, ())
            if note.at > kill.at and note.pid != kill.pid and note.what == "step" and note.step == 0
        ]
        signs = end + ([seen.at for seen in later] if kill.kind in WITHOUT_LOSS else begun)
        if not end or not signs:
            return None
        taken_up.append(min(signs) - kill.at)
        ended.append(min(end) - kill.at)
    return Recovery(max(taken_up), max(ended))


def noticed_s(kill: Kill, history: Mapping[str, Sequence[Seen]]) -> float | None:
    """Seconds until the first of its images was returned to the queue or claimed again; None if none was."""
    moments = []
    for image in kill.images:
        before = [seen.generation for seen in history[image] if seen.at <= kill.at]
        later = [seen for seen in history[image] if seen.at > kill.at]
        moments += [seen.at for seen in later if seen.state == "waiting" or seen.generation > max(before, default=0)]
    return min(moments) - kill.at if moments else None


def longest_pause_s(since: float, images: Iterable[str], history: Mapping[str, Sequence[Seen]]) -> float:
    """The longest time after `since` in which none of these images ended."""
    ends = sorted(seen.at for image in images for seen in history.get(image, ()) if seen.state == "ended")
    return max((after - before for before, after in pairwise([since, *(at for at in ends if at > since)])), default=0.0)


def slowest_s(images: Iterable[str], history: Mapping[str, Sequence[Seen]]) -> float:
    """The longest time that one of these images took from its POST to its end."""
    return max((history[image][-1].at - history[image][0].at for image in images if image in history), default=0.0)


def misses(kills: Iterable[Kill], notes: Mapping[str, Sequence[Note]]) -> list[str]:
    """Kills that hit nothing, and kinds with too few kills, one sentence each."""
    kills = list(kills)
    problems = [
        f"the kill of {kill.kind} {kill.pid} hit nothing"
        for kill in kills
        if not kill.images or (kill.kind == EDITOR and had_made(kill, notes))
    ]
    counts = Counter(kill.kind for kill in kills)
    for kind, least in ((EDITOR, KILLS_OF_EACH), (INGRESS, KILLS_OF_EACH), (CONNECTION, KILLS_OF_EACH), (CLUSTER, 1)):
        if counts[kind] < least:
            problems.append(f"only {counts[kind]} kills of kind {kind}, {least} are required")
    return problems


def had_made(kill: Kill, notes: Mapping[str, Sequence[Note]]) -> bool:
    """Whether the killed editor's last note on its image says that the image was made."""
    own = [note for image in kill.images for note in notes.get(image, ()) if note.pid == kill.pid]
    return not own or max(own, key=lambda note: note.at).what == "made"


def faults(order: Order, answer: Answer, undisturbed: Mapping[tuple[int, bool], str]) -> list[str]:
    """Problems with the end of an accepted request, one sentence each."""
    if answer.status not in ("succeeded", "failed"):
        return [f"{order.name} has not ended: {answer.status}"]
    if answer.status == "failed":
        return [f"{order.name} failed: {answer.error}"]
    numbers = [number for number, _ in answer.images]
    problems = []
    if sorted(numbers) != list(range(len(order.images))):
        problems.append(f"{order.name} reports the images {numbers}, it has {len(order.images)}")
    problems += [
        f"image {number} of {order.name} is not the image of an undisturbed run"
        for number, digest in answer.images
        if number < len(order.contents) and digest != undisturbed[order.contents[number]]
    ]
    return problems


def kill_rows(
    kills: Sequence[Kill], began: float, history: Mapping[str, Sequence[Seen]], notes: Mapping[str, Sequence[Note]]
) -> list[str]:
    """The table of kills and recoveries, as lines of Markdown."""
    rows = [
        "| at, s | killed | pid | its work at that moment | resumed after, s | all ended after, s |",
        "|---|---|---|---|---|---|",
    ]
    for kill in kills:
        felt = recovery(kill, history, notes)
        ends = f"{felt.taken_up_s:.1f} | {felt.ended_s:.1f}" if felt else "never | never"
        rows.append(f"| {kill.at - began:.1f} | {kill.kind} | {kill.pid} | {kill.doing} | {ends} |")
    return rows


def summary_rows(
    kills: Sequence[Kill], history: Mapping[str, Sequence[Seen]], notes: Mapping[str, Sequence[Note]]
) -> list[str]:
    rows = ["| killed | times | images hit | resumed after, s: median | longest |", "|---|---|---|---|---|"]
    for kind in (EDITOR, INGRESS, CONNECTION, CLUSTER):
        of_kind = [kill for kill in kills if kill.kind == kind]
        felt = [each.taken_up_s for kill in of_kind if (each := recovery(kill, history, notes))]
        images = sum(len(kill.images) for kill in of_kind)
        times = f"{statistics.median(felt):.1f} | {max(felt):.1f}" if felt else "- | -"
        rows.append(f"| {kind} | {len(of_kind)} | {images} | {times} |")
    return rows


def times_made(images: Iterable[str], notes: Mapping[str, Sequence[Note]]) -> Counter[int]:
    """How many images were made how many times. An image that an editor was killed on was not made by it."""
    return Counter(sum(note.what == "made" for note in notes.get(image, ())) for image in images)
