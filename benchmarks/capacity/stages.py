"""What each stage of an edit takes: as measured, or as assumed and named so. Seconds, FLOP, bytes."""

import random
from dataclasses import dataclass

from benchmarks.capacity.workload import forward_flops
from serve_app.config import ModelConfig
from serve_app.editor import ADAPTER_BYTES
from serve_app.router import PROBES_PER_S

# Of one stage, all that was seen of it; an edit draws one.
Seen = tuple[float, ...]


@dataclass(frozen=True)
class Stages:
    """In the order of an edit's life.

    admit_s: from the POST until the request is committed. claim_s: the transaction of a claim, one at a time.
    route_s: from there until the router looks at it. plan_s, plan_replica_s, plan_pair_s: what a router's look
    takes of its process, for itself, for each replica, for each request with each replica. send_s: from its choice
    until the editor has it. prepare_s: without loads. load_s: an adapter from the node's disk into host memory.
    fetch_s: from its store to the disk. swap_s: to other weights, on the device. work_s: on the device beside the
    transformer. flops_per_s: the transformer. store_s: encoding and storing the picture, which holds the slot.
    record_s: from there until the end is committed. cold_start_s: from the start of a replica until it takes edits.
    """

    admit_s: Seen = (0.0,)
    claim_s: Seen = (0.0,)
    route_s: Seen = (0.0,)
    plan_s: float = 0.0
    plan_replica_s: float = 0.0
    plan_pair_s: float = 0.0
    probe_s: float = 0.0
    send_s: Seen = (0.0,)
    prepare_s: Seen = (0.0,)
    load_s: Seen = (0.0,)
    fetch_s: Seen = (0.0,)
    swap_s: Seen = (0.0,)
    work_s: Seen = (0.0,)
    flops_per_s: float = 1.0
    store_s: Seen = (0.0,)
    record_s: Seen = (0.0,)
    cold_start_s: float = 0.0
    cache_bytes: int = ModelConfig().adapter_cache_bytes
    adapter_bytes: int = ADAPTER_BYTES
    disk_bytes: int = ModelConfig().adapter_disk_bytes
    replicas_a_node: int = 8
    probes_per_s: float = PROBES_PER_S


def draw(seen: Seen, chance: random.Random) -> float:
    return seen[0] if len(seen) == 1 else chance.choice(seen)


# One forward of the measured shape, 198 TFLOP, on an H200 (docs/capacity.md says where from).
EAGER_FORWARD_S, COMPILED_FORWARD_S = 0.446, 0.354


def h200(forward_s: float) -> Stages:
    return Stages(flops_per_s=forward_flops() / forward_s)
