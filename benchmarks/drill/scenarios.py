"""Faults of a cluster of several machines, one at a time, while it works."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from benchmarks.drill.cluster import REPLACED_AFTER_S, Cluster
from benchmarks.drill.network import Machine
from benchmarks.drill.notes import Note
from benchmarks.drill.service import DrillFailed
from benchmarks.drill.store import Store
from benchmarks.drill.verdict import CABLE, DATABASE, HANG, HEAD, NODE, REDIS, SLOW, STORAGE, Kill

# How long the drill looks for a process at work, and how long a fault that ends lasts (s).
PATIENCE_S, AWAY_S = 20, 30
# How often a node at work is frozen and looked at before another node is tried.
LOOKS = 20
Scenario = Callable[[], Awaitable[Kill]]


class Scenarios:
    """Each scenario causes its fault, undoes it if it does not end by itself, and returns what it hit."""

    def __init__(self, cluster: Cluster, store: Store) -> None:
        self._cluster = cluster
        self._store = store
        self.by_name: dict[str, Scenario] = {
            NODE: self._kill_node,
            CABLE: self._cut_node_off,
            HEAD: self._lose_head,
            HANG: self._stop_editor,
            SLOW: self._slow_node,
            DATABASE: self._cut_database_off,
            STORAGE: self._refuse_writes,
            REDIS: self._lose_redis,
        }

    async def _kill_node(self) -> Kill:
        """Kill every process of a node."""
        node, note = await self._node_at_work()
        images = await self._images_of(node, note)
        at = time.time()
        processes = node.kill()
        return Kill(at, NODE, note.pid, images, f"{processes} processes of {node.name}, {_step(note)}")

    async def _cut_node_off(self) -> Kill:
        """Cut a node off while its ingress is in a transaction that locks the queue's row of the model."""
        deadline = time.monotonic() + PATIENCE_S
        kill = None
        while kill is None:
            if time.monotonic() > deadline:
                raise DrillFailed(f"no node was seen to lock the queue for {PATIENCE_S} s")
            node, note = await self._node_at_work()
            kill = await self._cut_off_holding_a_line(node, note)
        await asyncio.sleep(AWAY_S)
        node.join()
        return kill

    async def _cut_off_holding_a_line(self, node: Machine, note: Note) -> Kill | None:
        pids = node.pids()
        for _ in range(LOOKS):
            # The row is locked for milliseconds. While the node is frozen there is time to look, and it still holds the
            # lock when it is cut off.
            with _frozen(pids):
                if await self._store.holds_a_line(node.address) and note.image in await self._store.running():
                    images = await self._images_of(node, note)
                    at = time.time()
                    node.cut()
                    return Kill(at, CABLE, note.pid, images, f"{node.name}, in a transaction, {_step(note)}")
            await asyncio.sleep(0.005)
        return None

    async def _lose_head(self) -> Kill:
        """Kill every process of the head; the next head has to replace an editor."""
        await self._node_at_work()
        images = await self._store.running()
        at = time.time()
        processes = self._cluster.head.kill()
        # Well into its absence, and before there is another.
        await asyncio.sleep(REPLACED_AFTER_S)
        _, note = await self._node_at_work()
        os.kill(note.pid, signal.SIGKILL)
        return Kill(at, HEAD, note.pid, images, f"{processes} processes, then an editor, {_step(note)}")

    async def _stop_editor(self) -> Kill:
        """Stop an editor (SIGSTOP): it neither works nor dies."""
        node, note = await self._node_at_work()
        at = time.time()
        os.kill(note.pid, signal.SIGSTOP)
        images = (note.image,)
        deadline = time.monotonic() + 2 * AWAY_S
        while self._cluster.editor(node) == note.pid and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        _send([note.pid], signal.SIGCONT)
        return Kill(at, HANG, note.pid, images, f"{node.name}, {_step(note)}")

    async def _slow_node(self) -> Kill:
        """Have a node's editor take five times as long."""
        node, note = await self._node_at_work()
        images = await self._store.running()
        at = time.time()
        self._cluster.set_slow([node])
        await asyncio.sleep(AWAY_S)
        self._cluster.set_slow([])
        made = [
            each.pid
            for notes in self._cluster.notes.of_image().values()
            for each in notes
            if each.what == "made" and each.at > at
        ]
        share = f"it made {made.count(note.pid)} of {len(made)}"
        return Kill(at, SLOW, note.pid, images, f"{node.name}, for {AWAY_S} s: {share}")

    async def _cut_database_off(self) -> Kill:
        await self._node_at_work()
        images = await self._store.running()
        at = time.time()
        self._cluster.database.cut()
        await asyncio.sleep(AWAY_S)
        self._cluster.database.join()
        return Kill(at, DATABASE, 0, images, f"silent for {AWAY_S} s, {len(images)} images running")

    async def _refuse_writes(self) -> Kill:
        await self._node_at_work()
        images = await self._store.running()
        at = time.time()
        self._cluster.set_storage_writable(False)
        await asyncio.sleep(AWAY_S)
        self._cluster.set_storage_writable(True)
        return Kill(at, STORAGE, 0, images, f"read-only for {AWAY_S} s, {len(images)} images running")

    async def _lose_redis(self) -> Kill:
        """Kill Redis, which holds the head's state, and start it again later with what is on its disk."""
        await self._node_at_work()
        images = await self._store.running()
        at = time.time()
        self._cluster.redis.kill()
        await asyncio.sleep(AWAY_S)
        head_pids = len(self._cluster.head.pids())
        self._cluster.start_redis()
        doing = f"dead for {AWAY_S} s, {len(images)} images running; the head had {head_pids} processes at its end"
        return Kill(at, REDIS, 0, images, doing)

    async def _node_at_work(self) -> tuple[Machine, Note]:
        """A node whose editor has just noted a step, not the last, of an unfinished image."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            for note in self._cluster.notes.at_work(await self._store.running()):
                if (node := self._cluster.node_of(note.pid)) is not None:
                    return node, note
            await asyncio.sleep(0.005)
        raise DrillFailed(f"no editor was seen at work for {PATIENCE_S} s")

    async def _images_of(self, node: Machine, note: Note) -> tuple[str, ...]:
        """The image that the node's editor makes, and those that its ingress has claimed."""
        pids = node.pids()
        held = [image for image, seen in (await self._store.look()).items() if seen.owner_pid in pids]
        return tuple(sorted({note.image, *held}))


@contextmanager
def _frozen(pids: Sequence[int]) -> Iterator[None]:
    """Stop processes for the duration of a block."""
    _send(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        _send(pids, signal.SIGCONT)


def _send(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _step(note: Note) -> str:
    return f"at step {note.step} of {note.steps} of {note.image}"
