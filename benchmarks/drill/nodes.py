"""Drills on several machines: every accepted request must end as if no machine had failed.

python -m benchmarks.drill.nodes [--head-state redis] [NAME ...]      # make drill-nodes; as root, on Linux

Machines are network namespaces of one host; see `cluster` for their processes and `scenarios` for the faults. While one
request per second is posted, a node is killed or cut off, an editor is stopped or slowed, the head is killed and
started again, the database is cut off, or artifact storage refuses writes. Each drill takes 90 s at most. The exit code
is 1 if a request does not end with its image, if an image differs from that of an undisturbed run, or if a fault hit
nothing.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

from benchmarks.drill import verdict
from benchmarks.drill.cluster import HEAD_STATES, NODES, ROCKSDB, Cluster
from benchmarks.drill.load import EVERYTHING, Client, Order, make_undisturbed
from benchmarks.drill.network import isolated
from benchmarks.drill.notes import Note
from benchmarks.drill.scenarios import Scenarios
from benchmarks.drill.service import DrillFailed
from benchmarks.drill.store import Store
from benchmarks.drill.verdict import CABLE, DATABASE, HANG, HEAD, NODE, REDIS, SLOW, STORAGE, Kill

NAMES = (NODE, CABLE, HEAD, HANG, SLOW, DATABASE, STORAGE)
# Drills that end with a new editor on the machine.
REPLACED = (NODE, CABLE, HEAD)
LIMIT_S = 90
# Time between requests, which is half of what three editors can do; time before a fault, and after its end (s).
EVERY_S, BEFORE_S, AFTER_S = 1.0, 4.0, 4.0
# A load balancer would not wait longer for an address.
CLIENT_TIMEOUT_S = 5
HEADER = (
    "| drill | what was hit | images hit | noticed, s | resumed, s | ended, s | longest pause, s "
    "| slowest image, s | restored, s | attempts lost | made twice | repeated | requests |"
)


class Load:
    """Posts requests at a steady rate during a block, and waits at its end until all are accepted."""

    def __init__(self, name: str, client: Client) -> None:
        self._name = name
        self._client = client
        self._posting: list[asyncio.Task[str]] = []
        self.orders: list[Order] = []
        self.request_ids: list[str] = []

    async def __aenter__(self) -> Self:
        self._going_on = asyncio.create_task(self._post_for_ever())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._going_on.cancel()
        if kind is None:
            self.request_ids = await asyncio.gather(*self._posting)
        for task in self._posting:
            task.cancel()

    async def _post_for_ever(self) -> None:
        while True:
            number = len(self.orders)
            self.orders.append(Order(f"{self._name}{number}", (number % len(EVERYTHING),), timed=True))
            # In tasks of their own, so that a repeated request delays no other.
            self._posting.append(asyncio.create_task(self._client.submit(self.orders[-1])))
            await asyncio.sleep(EVERY_S)


class NodesDrill:
    """`run` one drill by name on a complete cluster: it prints its row and returns the problems.

    `attempts` has the reasons of lost attempts.
    """

    def __init__(
        self, cluster: Cluster, store: Store, client: Client, undisturbed: dict[tuple[int, bool], str]
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._client = client
        self._undisturbed = undisturbed
        self._scenarios = Scenarios(cluster, store)
        self.attempts: list[str] = []

    async def run(self, name: str) -> list[str]:
        """Raises DrillFailed if nothing could be hit, or not all requests ended in time."""
        asked_before, counted_before = self._client.asked_again, await self._store.counts()
        following = asyncio.create_task(self._store.follow())
        try:
            async with asyncio.timeout(LIMIT_S):
                kill, load, becoming_whole = await self._befall(name)
                await self._client.wait_for_all(load.request_ids)
                await self._store.look()
        except TimeoutError:
            unfinished = [image for image, seen in self._store.latest().items() if seen.state != "ended"]
            raise DrillFailed(f"{name}: not done after {LIMIT_S} s; unfinished: {unfinished}") from None
        finally:
            following.cancel()
        whole_s = await becoming_whole - kill.at
        images = [image for order in load.orders for image in order.images]
        reasons = [
            reason for image, lost in (await self._store.reasons()).items() if image in images for reason in lost
        ]
        print(self._row(kill, images, whole_s, len(reasons), self._client.asked_again - asked_before), flush=True)
        self.attempts += [f"{name}: {reasons.count(reason)} attempts lost: {reason}" for reason in sorted(set(reasons))]
        return await self._problems(kill, load, counted_before)

    async def _befall(self, name: str) -> tuple[Kill, Load, asyncio.Task[float]]:
        """Cause the fault under load. Returns what was hit, the load, and a task for the time of full recovery."""
        async with Load(name, self._client) as load:
            await asyncio.sleep(BEFORE_S)
            kill = await self._scenarios.by_name[name]()
            becoming_whole = asyncio.create_task(self._cluster.until_whole(kill.pid if name in REPLACED else None))
            if name != CABLE:
                # Ray declares a node that was cut off dead even if it is back, later than the end of a drill.
                await becoming_whole
            await asyncio.sleep(AFTER_S)
        return kill, load, becoming_whole

    async def _problems(self, kill: Kill, load: Load, before: tuple[int, int]) -> list[str]:
        notes = self._cluster.notes.of_image()
        problems = []
        if not kill.images or (kill.kind in (NODE, CABLE, HANG) and verdict.had_made(kill, _until(kill, notes))):
            problems.append(f"{kill.kind}: it hit nothing")
        if kill.kind in (NODE, CABLE, HANG) and verdict.recovery(kill, self._store.history, notes) is None:
            problems.append(f"{kill.kind}: work on an image that it hit was not resumed")
        for order, request_id in zip(load.orders, load.request_ids, strict=True):
            problems += verdict.faults(order, await self._client.answer(request_id), self._undisturbed)
        requests, booked = (now - then for now, then in zip(await self._store.counts(), before, strict=True))
        if not requests == booked == len(load.orders):
            problems.append(f"{kill.kind}: {len(load.orders)} posted, {requests} stored, {booked} booked as made")
        return problems

    def _row(self, kill: Kill, images: list[str], whole_s: float, lost: int, asked_again: int) -> str:
        notes, history = self._cluster.notes.of_image(), self._store.history
        felt = verdict.recovery(kill, history, notes)
        noticed = verdict.noticed_s(kill, history)
        times = [
            f"{noticed:.1f}" if noticed is not None else "-",
            *([f"{felt.taken_up_s:.1f}", f"{felt.ended_s:.1f}"] if felt else ["never", "never"]),
            f"{verdict.longest_pause_s(kill.at, images, history):.1f}",
            f"{verdict.slowest_s(images, history):.1f}",
            f"{whole_s:.1f}",
        ]
        made = verdict.times_made(images, notes)
        twice = sum(count for times_made, count in made.items() if times_made > 1)
        cells = [kill.kind, kill.doing, len(kill.images), *times, lost, twice, asked_again, len(images)]
        return f"| {' | '.join(map(str, cells))} |"


def _until(kill: Kill, notes: dict[str, list[Note]]) -> dict[str, list[Note]]:
    """The notes until the fault: an editor that is stopped or cut off may continue later."""
    return {image: [note for note in notes.get(image, ()) if note.at <= kill.at] for image in kill.images}


async def drill(names: list[str], head_state: str, folder: Path) -> list[str]:
    problems = []
    async with Cluster(folder, head_state) as cluster:
        began = time.monotonic()
        await cluster.start()
        print(f"{NODES} nodes and a head were ready after {time.monotonic() - began:.0f} s\n")
        async with Store(cluster.local_database_url) as store, Client(cluster.urls, CLIENT_TIMEOUT_S) as client:
            undisturbed = await make_undisturbed(client, [Order("undisturbed", EVERYTHING, timed=True)])
            nodes_drill = NodesDrill(cluster, store, client, undisturbed)
            print(HEADER + "\n" + "|---" * (HEADER.count("|") - 1) + "|", flush=True)
            for name in names:
                try:
                    problems += await nodes_drill.run(name)
                except DrillFailed as failure:
                    problems.append(str(failure))
                await cluster.until_whole()
            print("\n".join(["", *nodes_drill.attempts]))
    return problems


async def main(names: list[str], head_state: str, logs: Path | None) -> None:
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="drill-"))
    try:
        problems = await drill(names, head_state, folder)
    except DrillFailed as failure:
        problems = [str(failure)]
    finally:
        if logs:
            shutil.copytree(folder, logs, symlinks=True, ignore=shutil.ignore_patterns("sockets", "gcs"))
    print(f"\nThe drills took {time.monotonic() - began:.0f} s.")
    if problems:
        sys.exit("\n".join(["They FAILED:", *problems]))
    print("Every accepted request succeeded, with its image, equal to that of an undisturbed run, booked once.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    all_names = f"{', '.join(NAMES)}; with Redis also {REDIS}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {all_names}; default: all")
    parser.add_argument("--head-state", choices=HEAD_STATES, default=ROCKSDB, help="where the head keeps its state")
    parser.add_argument("--logs", type=Path, help="a new folder for the logs of all machines")
    parser.add_argument("--isolated", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = [*NAMES, *([REDIS] if arguments.head_state == REDIS else [])]
    if unknown := set(arguments.names) - set(names):
        parser.error(f"there is no drill {', '.join(sorted(unknown))}")
    if not arguments.isolated:
        sys.exit(isolated([sys.executable, "-m", "benchmarks.drill.nodes", "--isolated", *sys.argv[1:]]))
    logs = arguments.logs and arguments.logs.absolute()
    asyncio.run(main(arguments.names or names, arguments.head_state, logs))
