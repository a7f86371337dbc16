"""An ingress in simulated time: its dispatcher's rules, and a router around the service's own `Routing`."""

import random
from collections.abc import Callable, Mapping

import simpy

from benchmarks.capacity.editors import Editor, Process
from benchmarks.capacity.line import Image, Line
from benchmarks.capacity.stages import Stages, draw
from serve_app.config import JobsConfig
from serve_app.policy.routing import LOOK_S, Routing, Waiting, answers_within_s
from serve_app.workers.dispatcher import CLAIMS_PER_EDITOR, MAX_IN_FLIGHT, POLLS_PER_LEASE

POLL_S = JobsConfig().lease_s / POLLS_PER_LEASE


class Bell:
    """Wakes the one process that waits for it; rung while nobody waits, it is heard at the next wait."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._event = env.event()

    def ring(self) -> None:
        if not self._event.triggered:
            self._event.succeed()

    def heard(self, within_s: float | None = None) -> Process:
        wait: simpy.Event = self._event
        if within_s is not None and not self._event.triggered:
            wait = self._event | self._env.timeout(within_s)
        yield wait
        if self._event.triggered:
            self._event = self._env.event()


class Router:
    """What `ExpectedCostRouter` does, with the time that it takes of its process."""

    def __init__(
        self,
        env: simpy.Environment,
        stages: Stages,
        editors: Mapping[str, Editor],
        chance: random.Random,
        send: Callable[[Image, Editor], Process],
    ) -> None:
        self._env, self._stages, self._editors, self._chance, self._send = env, stages, editors, chance, send
        self._routing = Routing()
        self._waiting: dict[str, tuple[Waiting, Image]] = {}
        self._lengths: dict[str, tuple[int, float]] = {}  # and when that was known
        self._probed = float("-inf")
        self._changed = False
        self._bell = Bell(env)
        self.busy_s = 0.0
        env.process(self._run())

    def route(self, image: Image) -> None:
        """Have it sent to an editor, now or later."""
        request = Waiting(str(image.arrival.number), image.arrival.adapter, self._env.now)
        self._waiting[request.id] = request, image
        self._changed = True
        self._bell.ring()

    def has_ended(self, editor: Editor) -> None:
        """A request of this router has left the editor."""
        if self._is_known(editor.id):
            self._note(editor.id, max(0, self._length(editor.id) - 1))

    def _length(self, editor_id: str) -> int:
        return self._lengths.get(editor_id, (0, 0.0))[0]

    def _note(self, editor_id: str, running: int) -> None:
        self._lengths[editor_id] = running, self._env.now

    def _is_known(self, editor_id: str) -> bool:
        silent_s = self._env.now - self._lengths.get(editor_id, (0, float("-inf")))[1]
        return silent_s <= answers_within_s(len(self._editors))

    def _run(self) -> Process:
        while True:
            if not self._waiting:
                yield from self._bell.heard()
            if self._env.now - self._probed > len(self._editors) / self._stages.probes_per_s:
                yield from self._busy(self._stages.probe_s * len(self._editors))
                self._lengths = {id: (editor.running, self._env.now) for id, editor in self._editors.items()}
                self._probed = self._env.now
                self._changed = True
            if self._changed:
                yield from self._plan()
            if self._waiting:
                yield from self._bell.heard(within_s=LOOK_S)

    def _plan(self) -> Process:
        self._changed = False
        editors = [each for each in self._editors.values() if self._is_known(each.id)]
        known = [each.as_replica(self._length(each.id)) for each in editors]
        starts = self._routing.plan([request for request, _ in self._waiting.values()], known, self._env.now)
        # The router plans anew after each start; the plans agree, so one stands for all, at the price of each.
        for id, editor_id in starts.items():
            yield from self._busy(self._price(len(editors)))
            self._start(id, editor_id)
        if not starts:
            yield from self._busy(self._price(len(editors)))

    def _price(self, editors: int) -> float:
        stages = self._stages
        return editors * (stages.plan_replica_s + len(self._waiting) * stages.plan_pair_s)

    def _busy(self, seconds: float) -> Process:
        self.busy_s += seconds
        yield self._env.timeout(seconds)

    def _start(self, id: str, editor_id: str) -> None:
        request, image = self._waiting.pop(id)
        self._routing.assigned(request, editor_id, self._env.now)
        self._note(editor_id, self._length(editor_id) + 1)
        self._changed = True
        self._env.process(self._deliver(image, editor_id))

    def _deliver(self, image: Image, editor_id: str) -> Process:
        yield self._env.timeout(draw(self._stages.send_s, self._chance))
        editor = self._editors.get(editor_id)
        if editor is None or not editor.accept():
            # Another router was faster, or it has gone; the refusal says how many it has.
            self._note(editor_id, editor.running if editor else 0)
            self.route(image)
            return
        self._note(editor_id, editor.running)
        image.sent = self._env.now
        yield from self._send(image, editor)


class Ingress:
    """A dispatcher and its router. `done` is told of each image that has its end."""

    def __init__(
        self,
        env: simpy.Environment,
        stages: Stages,
        line: Line,
        editors: Mapping[str, Editor],
        chance: random.Random,
        done: Callable[[Image], None],
    ) -> None:
        self._env, self._stages, self._line, self._editors = env, stages, line, editors
        self._chance, self._done = chance, done
        self._in_flight = 0
        self._bell = Bell(env)
        self.router = Router(env, stages, editors, chance, self._edit)
        env.process(self._claim_for_ever())

    def submit(self, image: Image) -> Process:
        yield self._env.timeout(draw(self._stages.admit_s, self._chance))
        with self._line.lock.request() as turn:
            yield turn
            yield self._env.timeout(draw(self._stages.commit_s, self._chance))
            image.committed = self._env.now
            self._line.add(image)
        self._bell.ring()

    def _claim_for_ever(self) -> Process:
        while True:
            room = MAX_IN_FLIGHT - self._in_flight
            if room > 0 and len(self._line):
                with self._line.lock.request() as turn:
                    yield turn
                    yield self._env.timeout(draw(self._stages.claim_s, self._chance))
                    taken = self._line.take(CLAIMS_PER_EDITOR * max(len(self._editors), 1), room)
                for image in taken:
                    image.claimed = self._env.now
                    self._in_flight += 1
                    self.router.route(image)
            yield from self._bell.heard(within_s=POLL_S)

    def _edit(self, image: Image, editor: Editor) -> Process:
        yield from editor.edit(image)
        self.router.has_ended(editor)
        yield self._env.timeout(draw(self._stages.record_s, self._chance))
        image.ended = self._env.now
        self._line.claimed.remove(image)
        self._in_flight -= 1
        self._done(image)
        self._bell.ring()
