"""Serve's request router for the editors: collects what this process knows of the replicas and asks `Routing`."""

import asyncio
import time
from typing import Any

from ray.serve._private.request_router.common import ReplicaQueueLengthCache
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from serve_app.policy.routing import (
    PROBES_PER_S,
    RECHECK_S,
    REPORT_PERIOD_S,
    Replica,
    Report,
    Routing,
    WaitingRequest,
    answer_valid_s,
)

# The longest time (s) between the choice of a replica and the sending of the request, which the event loop does in its
# next iteration. Until then the replica's queue length does not include the request.
SENT_WITHIN_S = 0.1


class ExpectedCostRouter(RequestRouter):  # type: ignore[misc]  # Ray
    """Sends each request to the replica that `Routing` chooses; the request waits in this router until then."""

    # One task per waiting request. With Serve's default of two per replica, requests for an idle replica would wait
    # behind requests for a busy one.
    max_num_routing_tasks_cap = 1000

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._routing = Routing()
        self._replica_queue_len_cache = ReplicaQueueLengthCache(staleness_timeout_s=answer_valid_s(0))
        # The replica for each request of the current plan that may start; None when the plan is out of date.
        self._starts: dict[str, str] | None = None
        # The requests that were waiting when the plan was made.
        self._planned: frozenset[str] = frozenset()
        # Choices whose requests are not sent yet: replica, time of the choice.
        self._unsent: list[tuple[ReplicaID, float]] = []
        self._last_probe = float("-inf")
        self._probing = asyncio.Lock()

    @property
    def max_num_routing_tasks(self) -> int:
        return self.max_num_routing_tasks_cap

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replica where the request may start now. If the result is empty, Serve asks again after a short pause."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        await self._probe()
        request = _waiting(pending_request)
        if self._starts is None or request.id not in self._planned:
            self._plan()
        chosen = (self._starts or {}).get(request.id)
        for replica in self._replicas_list:
            if replica.replica_id.unique_id == chosen:
                now = time.monotonic()
                self._routing.assigned(request, replica.replica_id.unique_id, now)
                self._unsent.append((replica.replica_id, now))
                self._starts = None
                return [[replica]]
        return []

    def on_send_request(self, replica_id: ReplicaID) -> None:
        super().on_send_request(replica_id)
        sent = next((unsent for unsent in self._unsent if unsent[0] == replica_id), None)
        if sent:
            self._unsent.remove(sent)
        self._starts = None

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        # The cache takes this time only in its constructor, when the number of replicas is not known yet.
        self._replica_queue_len_cache._staleness_timeout_s = answer_valid_s(len(replicas))
        self._starts = None

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._starts = None

    async def _probe(self) -> None:
        """Ask every replica for its queue length, at most `PROBES_PER_S` questions per second."""
        async with self._probing:
            if time.monotonic() - self._last_probe > len(self._replicas_list) / PROBES_PER_S:
                await self._probe_queue_lens(self._replicas_list, 0)
                self._last_probe = time.monotonic()
                self._starts = None

    def _plan(self) -> None:
        now = time.monotonic()
        self._unsent = [(id, at) for id, at in self._unsent if now - at < SENT_WITHIN_S]
        requests = [_waiting(pending) for pending in self._pending_requests_to_fulfill if not pending.future.done()]
        self._starts = self._routing.plan(requests, self._known_replicas(), now)
        self._planned = frozenset(request.id for request in requests)

    def _known_replicas(self) -> list[Replica]:
        """The replicas that answered lately and whose device works: one with a dead device rejects every request."""
        known = []
        for replica in self._replicas_list:
            running = self._replica_queue_len_cache.get(replica.replica_id)
            report = Report.of(replica.routing_stats)
            if running is not None and report.alive:
                unsent = sum(id == replica.replica_id for id, _ in self._unsent)
                known.append(
                    Replica(
                        replica.replica_id.unique_id,
                        running + unsent,
                        replica.max_ongoing_requests,
                        report.held_sets(replica.multiplexed_model_ids),
                        report.work_s,
                        report.load_s,
                    )
                )
        return known


def _waiting(pending: PendingRequest) -> WaitingRequest:
    return WaitingRequest(
        pending.metadata.internal_request_id, pending.metadata.multiplexed_model_id, pending.created_at
    )


ROUTER = RequestRouterConfig(
    request_router_class=ExpectedCostRouter,
    request_routing_stats_period_s=REPORT_PERIOD_S,
    max_backoff_s=RECHECK_S,
)
