"""What each stage of an edit takes: as measured, or as assumed and named so. Seconds, FLOP, bytes."""

import random
from dataclasses import dataclass

from benchmarks.capacity.workload import forward_flops
from serve_app.config import ModelConfig
from serve_app.policy.routing import PROBES_PER_S
from serve_app.policy.scaling import UNMEASURED_COLD_START_S
from serve_app.replicas.routing_stats import ADAPTER_BYTES

# Of one stage, all that was seen of it; an edit draws one.
Seen = tuple[float, ...]


@dataclass(frozen=True)
class Stages:
    """In the order of an edit's life.

    - `admit_s`: from the POST until its commit begins; `commit_s`: while that holds the line's row, one at a time;
      `claim_s`: the same for a claim.
    - `plan_replica_s`, `plan_pair_s`: what a router's look takes of its process, for each replica, and for each replica
      with each request that waits; `probe_s`: asking one replica how many it has, which
      happens to `probes_per_s` of them.
    - `send_s`: from the router's choice until the editor begins to prepare; `prepare_s`: that, without loads.
    - `load_s`: an adapter from the node's disk into host memory; `fetch_s`: from its store to the disk.
    - `swap_s`: to other weights, on the device; `beside_s`: what else the device does beside the transformer;
      `flops_per_s`: the transformer.
    - `record_s`: from the device's end until the image's end is committed.
    - `cold_start_s`: from a replica's start until it takes edits.
    """

    admit_s: Seen = (0.0,)
    commit_s: Seen = (0.0,)
    claim_s: Seen = (0.0,)
    plan_replica_s: float = 0.0
    plan_pair_s: float = 0.0
    probe_s: float = 0.0
    probes_per_s: float = PROBES_PER_S
    send_s: Seen = (0.0,)
    prepare_s: Seen = (0.0,)
    load_s: Seen = (0.0,)
    fetch_s: Seen = (0.0,)
    swap_s: Seen = (0.0,)
    beside_s: Seen = (0.0,)
    flops_per_s: float = 1.0
    record_s: Seen = (0.0,)
    cold_start_s: float = 0.0
    cache_bytes: int = ModelConfig().adapter_cache_bytes
    adapter_bytes: int = ADAPTER_BYTES
    disk_bytes: int = ModelConfig().adapter_disk_bytes
    replicas_a_node: int = 8


def draw(seen: Seen, chance: random.Random) -> float:
    return seen[0] if len(seen) == 1 else chance.choice(seen)


# A forward of 198 TFLOP on an H200: as the service ran it (22.3 s for 50, README), and with regional compilation and a
# merged adapter, as benchmarked beside it (docs/capacity.md).
EAGER_FORWARD_S, COMPILED_FORWARD_S = 0.446, 0.354
# What 1024x1024 at 25 steps took beside its denoising, from POST to end 23.1 s less 22.3 s: encoders and VAE mostly.
BESIDE_S = 0.7


def h200(forward_s: float) -> Stages:
    """An H200 in a cluster. Loads and fetches are assumptions: 2 GB/s from a node's disk, 1 GB/s from the store."""
    return Stages(
        admit_s=(0.02,),
        commit_s=(0.005,),
        claim_s=(0.005,),
        plan_replica_s=7.3e-6,
        plan_pair_s=0.95e-6,
        probe_s=0.2e-3,
        send_s=(0.03,),
        load_s=(0.3,),
        fetch_s=(0.6,),
        swap_s=(0.048,),
        beside_s=(BESIDE_S,),
        flops_per_s=forward_flops() / forward_s,
        record_s=(0.05,),
        cold_start_s=UNMEASURED_COLD_START_S,
    )
