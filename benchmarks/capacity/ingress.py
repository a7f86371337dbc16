"""A simulated ingress: the dispatcher's rules, and a router around the service's own `Routing`.

Its rules follow `serve_app/workers/dispatcher.py` and `serve_app/replicas/router.py`, with their constants.
"""

from collections.abc import Mapping

import simpy

from benchmarks.capacity.editors import Editor, Process, Stages
from benchmarks.capacity.queue import Queue
from benchmarks.capacity.traffic import Image
from serve_app.config import JobsConfig
from serve_app.policy.routing import PROBES_PER_S, RECHECK_S, Routing, WaitingRequest, answer_valid_s
from serve_app.workers.dispatcher import CLAIMS_PER_EDITOR, MAX_IN_FLIGHT, POLLS_PER_LEASE

POLL_S = JobsConfig().lease_s / POLLS_PER_LEASE


class Ingress:
    """Commits and claims images, and sends each to the editor that its `Routing` chooses."""

    def __init__(
        self, env: simpy.Environment, stages: Stages, queue: Queue, editors: Mapping[str, Editor], ended: list[Image]
    ) -> None:
        self._env, self._stages, self._queue, self._editors, self._ended = env, stages, queue, editors, ended
        self._in_flight = 0
        self._routing = Routing()
        self._waiting: dict[str, tuple[WaitingRequest, Image]] = {}
        # Queue length of each editor, and when it was known.
        self._lengths: dict[str, tuple[int, float]] = {}
        self._probed = float("-inf")
        env.process(self._poll())
        env.process(self._look())

    def submit(self, image: Image) -> Process:
        yield self._env.timeout(self._stages.submit_s)
        image.committed = self._env.now
        self._queue.add(image)
        self._claim()

    def _poll(self) -> Process:
        while True:
            yield self._env.timeout(POLL_S)
            self._claim()

    def _claim(self) -> None:
        capacity = CLAIMS_PER_EDITOR * len(self._editors)
        claimed = self._queue.claim(capacity, MAX_IN_FLIGHT - self._in_flight)
        self._in_flight += len(claimed)
        if claimed:
            self._route(claimed)

    def _route(self, images: list[Image]) -> None:
        for image in images:
            request = WaitingRequest(str(image.number), image.adapter, self._env.now)
            self._waiting[request.id] = request, image
        self._plan()

    def _look(self) -> Process:
        """While images wait for an editor, plan again: other routers' edits may have left a slot."""
        while True:
            yield self._env.timeout(RECHECK_S)
            if self._waiting:
                self._plan()

    def _plan(self) -> None:
        if self._env.now - self._probed > len(self._editors) / PROBES_PER_S:
            self._lengths = {id: (editor.running, self._env.now) for id, editor in self._editors.items()}
            self._probed = self._env.now
        known = [each.as_replica(self._length(each.id)) for each in self._editors.values() if self._is_known(each.id)]
        starts = self._routing.plan([request for request, _ in self._waiting.values()], known, self._env.now)
        for id, editor_id in starts.items():
            request, image = self._waiting.pop(id)
            self._routing.assigned(request, editor_id, self._env.now)
            self._note(editor_id, self._length(editor_id) + 1)
            self._env.process(self._edit(image, editor_id))

    def _edit(self, image: Image, editor_id: str) -> Process:
        yield self._env.timeout(self._stages.send_s)
        editor = self._editors[editor_id]
        if not editor.accept():
            # Another router was faster. The refusal carries the editor's queue length.
            self._note(editor_id, editor.running)
            self._route([image])
            return
        self._note(editor_id, editor.running)
        yield from editor.edit(image)
        if self._is_known(editor_id):
            self._note(editor_id, max(0, self._length(editor_id) - 1))
        yield self._env.timeout(self._stages.record_s)
        image.ended = self._env.now
        self._queue.claimed -= 1
        self._ended.append(image)
        self._in_flight -= 1
        self._claim()

    def _length(self, editor_id: str) -> int:
        return self._lengths.get(editor_id, (0, 0.0))[0]

    def _note(self, editor_id: str, running: int) -> None:
        self._lengths[editor_id] = running, self._env.now

    def _is_known(self, editor_id: str) -> bool:
        silent_s = self._env.now - self._lengths.get(editor_id, (0, float("-inf")))[1]
        return silent_s <= answer_valid_s(len(self._editors))
