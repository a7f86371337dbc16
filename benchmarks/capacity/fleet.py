"""The editors there are, and the service's own scaling policy that decides how many."""

import random
from collections.abc import Sequence

import simpy

from benchmarks.capacity.editors import Disk, Editor, Process
from benchmarks.capacity.line import Line
from benchmarks.capacity.stages import Stages
from benchmarks.capacity.workload import adapter_name
from serve_app.policy import scaling
from serve_app.policy.routing import HOME_UTILISATION

DECIDE_S, DRAINED_S = 1.0, 0.5


class Fleet:
    """`editors` are those that take edits, by id: routers see no others. One GPU each, paid for from its start on."""

    def __init__(self, env: simpy.Environment, stages: Stages, count: int, chance: random.Random) -> None:
        self.editors: dict[str, Editor] = {}
        self.starting = 0
        self._env, self._stages, self._chance = env, stages, chance
        self._disk_places = stages.disk_bytes // stages.adapter_bytes
        self._made = 0
        self._paid: dict[str, float] = {}  # since when, those that are there
        self._gone_s, self._gone_busy_s = 0.0, 0.0
        self._draining: dict[str, Editor] = {}
        for _ in range(count):
            editor = self._make()
            self.editors[editor.id] = editor

    def warm(self, shares: Sequence[float]) -> None:
        """Begin as after a long time: adapters, most popular first, have the homes that routing would give them."""
        editors = list(self.editors.values())
        places = len(editors) * (self._stages.cache_bytes // self._stages.adapter_bytes)
        homes: list[str] = []
        for rank, share in enumerate(shares):
            count = min(len(editors), max(1, round(share * len(editors) / HOME_UTILISATION)))
            homes += [adapter_name(rank)] * count
            if len(homes) >= places:
                break
        # The least popular first: what was used last stays longest.
        for place, adapter in reversed(list(enumerate(homes[:places]))):
            editors[place % len(editors)].warm(adapter)

    @property
    def gpu_s(self) -> float:
        """Seconds of GPUs so far, those that start and those that drain included."""
        return self._gone_s + sum(self._env.now - since for since in self._paid.values())

    @property
    def busy_s(self) -> float:
        """Seconds that devices worked so far."""
        editors = [*self.editors.values(), *self._draining.values()]
        return self._gone_busy_s + sum(editor.busy_s for editor in editors)

    def start(self) -> Process:
        """Another one, after its cold start."""
        self.starting += 1
        editor = self._make()
        yield self._env.timeout(self._stages.cold_start_s)
        self.starting -= 1
        self.editors[editor.id] = editor

    def stop(self, editor: Editor) -> Process:
        """No more edits for this one; it ends those that it has."""
        self._draining[editor.id] = self.editors.pop(editor.id)
        while editor.running:
            yield self._env.timeout(DRAINED_S)
        del self._draining[editor.id]
        self._gone_s += self._env.now - self._paid.pop(editor.id)
        self._gone_busy_s += editor.busy_s

    def _make(self) -> Editor:
        if self._made % self._stages.replicas_a_node == 0:
            self._disk = Disk(self._disk_places)
        editor = Editor(self._env, f"editor {self._made}", self._stages, self._disk, self._chance)
        self._made += 1
        self._paid[editor.id] = self._env.now
        return editor


class Scaler:
    """Asks `serve_app.policy.scaling` each second and does what it says."""

    def __init__(
        self, env: simpy.Environment, stages: Stages, line: Line, fleet: Fleet, limits: scaling.Limits
    ) -> None:
        self._env, self._stages, self._line, self._fleet, self._limits = env, stages, line, fleet, limits
        self._scaling = scaling.Scaling()
        env.process(self._run())

    def _run(self) -> Process:
        while True:
            fleet, now = self._fleet, self._env.now
            known = scaling.Fleet(len(fleet.editors), fleet.starting, self._stages.cold_start_s)
            wanted = self._scaling.decide(self._backlog(now), known, self._limits, now).replicas
            for _ in range(wanted - known.size):
                self._env.process(fleet.start())
            idlest = sorted(fleet.editors.values(), key=lambda editor: (editor.running, -editor.started))
            for editor in idlest[: max(0, known.size - wanted)]:
                self._env.process(fleet.stop(editor))
            yield self._env.timeout(DECIDE_S)

    def _backlog(self, now: float) -> scaling.Backlog:
        line, speed = self._line, self._stages.flops_per_s
        running_s = sum(image.left_s(now, speed) for image in line.claimed)
        oldest_s = 0.0 if line.oldest is None else now - line.oldest
        return scaling.Backlog(line.flops / speed, running_s, len(line) + len(line.claimed), oldest_s)
