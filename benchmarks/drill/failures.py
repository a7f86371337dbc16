"""The failure drill: kills editors, ingresses, connections and the cluster while they work on requests."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from benchmarks.drill import verdict
from benchmarks.drill.load import EVERYTHING, PROMPTS, Answer, Client, Order, make_orders, make_undisturbed
from benchmarks.drill.service import DrillFailed, Service
from benchmarks.drill.store import Store
from benchmarks.drill.verdict import CLUSTER, CONNECTION, EDITOR, INGRESS, KILLS_OF_EACH, Kill

SEED = 5
REQUESTS = 60
# Requests posted before the first kill, with each kill, and during the kill of the cluster; together all of them. On a
# fast machine some of the last ones are posted earlier.
AT_FIRST, WITH_EACH, AT_LAST = 20, 2, 10
PAUSE_S = (2.0, 4.0)
# Steps per edit: enough for the work to last until the last kill on a fast machine.
STEPS = 10
# How long the drill looks for a process at work (s).
PATIENCE_S = 30


class FailureDrill:
    """`run` it, then print `report`, which also shows a drill that failed half way."""

    def __init__(self, service: Service, store: Store, client: Client) -> None:
        self._service = service
        self._store = store
        self._client = client
        self._random = random.Random(SEED)
        self._orders = make_orders(REQUESTS, self._random, STEPS)
        self._accepted: dict[str, str] = {}
        self._began = time.time()
        self._restart_s: float | None = None
        self._kills: list[Kill] = []

    async def run(self) -> list[str]:
        """Run the drill and return its problems. Raises DrillFailed if no process was seen at work."""
        undisturbed = await make_undisturbed(
            self._client,
            [Order("plain", EVERYTHING, steps=STEPS), Order("with-lora", EVERYTHING, lora=True, steps=STEPS)],
        )
        follower = asyncio.create_task(self._store.follow())
        try:
            await self._post(AT_FIRST)
            kinds = [EDITOR, INGRESS, CONNECTION] * KILLS_OF_EACH
            self._random.shuffle(kinds)
            for kind in kinds:
                await asyncio.sleep(self._random.uniform(*PAUSE_S))
                await self._kill(kind)
                await self._post(WITH_EACH)
            await asyncio.sleep(PAUSE_S[1])
            await self._lose_the_cluster()
            await self._client.wait_for_all(self._accepted.values())
            await self._store.look()
        finally:
            follower.cancel()
        return await self._problems(undisturbed)

    async def _post(self, count: int) -> None:
        for order in self._orders[len(self._accepted) :][:count]:
            self._accepted[order.name] = await self._client.submit(order)

    async def _kill(self, kind: str) -> None:
        """Kill a process or connection of this kind as soon as one is seen at work."""
        attempts: dict[str, Callable[[], Awaitable[Kill | None]]] = {
            EDITOR: self._kill_editor,
            INGRESS: self._kill_ingress,
            CONNECTION: self._end_connection,
        }
        deadline = time.monotonic() + PATIENCE_S
        while (kill := await attempts[kind]()) is None:
            if time.monotonic() > deadline:
                raise DrillFailed(f"no {kind} was seen at work for {PATIENCE_S} s: the kill would hit nothing")
            await self._keep_busy()
            await asyncio.sleep(0.005)
        self._kills.append(kill)

    async def _keep_busy(self) -> None:
        """Post the next request if all others have ended."""
        if all(seen.state == "ended" for seen in (await self._store.look()).values()):
            await self._post(1)

    async def _kill_editor(self) -> Kill | None:
        """Kill an editor that has just noted a step, not the last, of an unfinished image. None if there is none."""
        running = [
            note for note in self._service.notes.at_work(await self._store.running()) if self._service.owns(note.pid)
        ]
        if not running:
            return None
        note = self._random.choice(running)
        at = time.time()
        self._service.kill(note.pid)
        return Kill(at, EDITOR, note.pid, (note.image,), f"at step {note.step} of {note.steps} of {note.image}")

    async def _kill_ingress(self) -> Kill | None:
        """Kill an ingress whose dispatcher has claimed images that editors work on. None if there is none."""
        held: dict[int, list[str]] = {}
        for image, seen in (await self._store.look()).items():
            if seen.is_running and seen.owner_pid is not None:
                held.setdefault(seen.owner_pid, []).append(image)
        pids = [pid for pid in sorted(held) if self._service.owns(pid)]
        if not pids:
            return None
        pid = self._random.choice(pids)
        at = time.time()
        self._service.kill(pid)
        return Kill(at, INGRESS, pid, tuple(held[pid]), f"holding {', '.join(held[pid])}")

    async def _end_connection(self) -> Kill | None:
        """End a connection that is in a transaction on images. None if there is none."""
        ended = await self._store.end_one_in_use()
        if ended is None:
            return None
        running = await self._store.running()
        if not running:
            # Its transaction was on waiting images, which is not the case to test.
            return None
        doing = " ".join(ended.query.split())[:32]
        return Kill(
            time.time(), CONNECTION, ended.pid, running, f"{ended.state}, `{doing}`, {len(running)} images running"
        )

    async def _lose_the_cluster(self) -> None:
        """Kill all of Ray while images run, and start the service again, while requests keep coming."""
        deadline = time.monotonic() + PATIENCE_S
        while not (running := await self._store.running()):
            if time.monotonic() > deadline:
                raise DrillFailed("the cluster was not seen at work")
            await self._keep_busy()
            await asyncio.sleep(0.005)
        at = time.time()
        processes = self._service.kill_cluster()
        self._kills.append(Kill(at, CLUSTER, 0, running, f"all {processes} processes, {len(running)} images running"))
        posting = asyncio.create_task(self._post(AT_LAST))
        try:
            await self._service.start()
            self._restart_s = time.time() - at
            await posting
        finally:
            posting.cancel()

    async def _problems(self, undisturbed: dict[tuple[int, bool], str]) -> list[str]:
        notes = self._service.notes.of_image()
        problems = verdict.misses(self._kills, notes)
        answers: dict[str, Answer] = {}
        for order in self._orders:
            if order.name not in self._accepted:
                problems.append(f"{order.name} was not accepted")
                continue
            answers[order.name] = await self._client.answer(self._accepted[order.name])
            problems += verdict.faults(order, answers[order.name], undisturbed)
        succeeded = sum(len(answer.images) for answer in answers.values())
        requests, booked = await self._store.counts()
        # Includes the two requests of the undisturbed run.
        if requests != REQUESTS + 2:
            problems.append(f"{requests} requests are stored, {REQUESTS + 2} were posted")
        if booked != succeeded + 2 * len(PROMPTS):
            problems.append(f"{booked} images are booked as made, {succeeded + 2 * len(PROMPTS)} are reported")
        return problems

    def report(self) -> list[str]:
        """The tables and counts of the drill, as lines of Markdown."""
        notes, history = self._service.notes.of_image(), self._store.history
        images = [image for order in self._orders for image in order.images]
        made = verdict.times_made(images, notes)
        often = ", ".join(f"{count} {times}x" for times, count in sorted(made.items()))
        last = max((seen[-1].at for seen in history.values()), default=self._began) - self._began
        restart = f"ready {self._restart_s:.1f} s" if self._restart_s else "not ready"
        return [
            *verdict.kill_rows(self._kills, self._began, history, notes),
            "",
            *verdict.summary_rows(self._kills, history, notes),
            "",
            f"{len(self._accepted)} requests with {len(images)} images, the last one ended after {last:.0f} s; "
            f"made: {often}",
            f"the service was {restart} after the cluster was killed; "
            f"clients repeated {self._client.asked_again} requests",
        ]
