"""Serve's request router for the editors: puts what this process knows of the replicas before `Routing`."""

import asyncio
import time
from typing import Any

from ray.serve._private.request_router.common import ReplicaQueueLengthCache
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from serve_app.policy.routing import (
    LOOK_S,
    PROBES_PER_S,
    REPORT_PERIOD_S,
    Replica,
    Report,
    Routing,
    Waiting,
    answers_within_s,
)

# A chosen replica's queue length counts the request once it is sent: at the event loop's next turn.
SENT_WITHIN_S = 0.1


class ExpectedCostRouter(RequestRouter):  # type: ignore[misc]  # Ray
    """Sends each request to the replica that its `Routing` names, and keeps it here until one is named."""

    # One task for each request that waits. With Serve's two a replica, requests for an idle replica would wait
    # behind those for a busy one.
    max_num_routing_tasks_cap = 1000

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._routing = Routing()
        self._replica_queue_len_cache = ReplicaQueueLengthCache(staleness_timeout_s=answers_within_s(0))
        # Which waiting requests may start where, among which; None when something has changed since.
        self._starts: dict[str, str] | None = None
        self._planned: frozenset[str] = frozenset()
        self._unsent: list[tuple[ReplicaID, float]] = []
        self._probed = float("-inf")
        self._probing = asyncio.Lock()

    @property
    def max_num_routing_tasks(self) -> int:
        return self.max_num_routing_tasks_cap

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The one replica where the request may start now, or none: Serve asks again after a short pause."""
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
        # A setting of the constructor alone, and how many they will be is not known there.
        self._replica_queue_len_cache._staleness_timeout_s = answers_within_s(len(replicas))
        self._starts = None

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._starts = None

    async def _probe(self) -> None:
        """Have every replica's queue length anew, unless it was asked for just now."""
        async with self._probing:
            if time.monotonic() - self._probed > len(self._replicas_list) / PROBES_PER_S:
                await self._probe_queue_lens(self._replicas_list, 0)
                self._probed = time.monotonic()
                self._starts = None

    def _plan(self) -> None:
        now = time.monotonic()
        self._unsent = [(id, at) for id, at in self._unsent if now - at < SENT_WITHIN_S]
        requests = [_waiting(pending) for pending in self._pending_requests_to_fulfill if not pending.future.done()]
        self._starts = self._routing.plan(requests, self._known_replicas(), now)
        self._planned = frozenset(request.id for request in requests)

    def _known_replicas(self) -> list[Replica]:
        """Those that have told their queue length lately, less those that would turn everything away at once."""
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
                        report.held_and_named(replica.multiplexed_model_ids),
                        report.work_s,
                        report.load_s,
                    )
                )
        return known


def _waiting(pending: PendingRequest) -> Waiting:
    return Waiting(pending.metadata.internal_request_id, pending.metadata.multiplexed_model_id, pending.created_at)


ROUTER = RequestRouterConfig(
    request_router_class=ExpectedCostRouter,
    request_routing_stats_period_s=REPORT_PERIOD_S,
    max_backoff_s=LOOK_S,
)
