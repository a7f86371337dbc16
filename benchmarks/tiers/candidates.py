"""The settings that are measured: each lever alone, combinations, and those of the documented tiers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.tiers.caches import Cache, Where
from serve_app.tasks import AdapterUse, EditPlan


@dataclass(frozen=True)
class Candidate:
    """One setting of the levers. `changes` are fields of the exact plan that it replaces.

    With `few_steps`, the adapter that was distilled to few steps lies under the request's own. `cache` is one that the
    engine does not have.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    few_steps: bool = False
    cache: Cache | None = None

    @property
    def fp8(self) -> bool:
        return self.changes.get("quantization") == "fp8"

    def plan(self, exact: EditPlan, few_steps: AdapterUse | None) -> EditPlan:
        """The candidate's plan for the same image as `exact`."""
        adapters = exact.adapters
        if self.few_steps:
            assert few_steps is not None, f"{self.name} needs --few-steps"
            adapters = (few_steps, *adapters)
        return replace(exact, adapters=adapters, **self.changes)


EXACT = Candidate("exact")


def gated(share: float, rest: str) -> dict[str, Any]:
    return {"guidance_gate": share, "guidance_gate_rest": rest}


FP8 = {"quantization": "fp8"}
TURBO = {"steps": 8, "guidance_scale": 1.0, "sampler": "lightning"}

# The documented tiers: docs/performance.md.
SHIPPED = (
    Candidate("balanced", {"steps": 19}),
    Candidate("fast", {"steps": 12}),
    Candidate("turbo", TURBO, few_steps=True),
)
GATES = tuple(
    Candidate(f"guidance_gate={share} {rest}", gated(share, rest))
    for rest in ("drop", "reuse")
    for share in (0.2, 0.4, 0.6, 0.8)
)
CACHES = tuple(
    Candidate(f"feature_cache={threshold}", {"feature_cache": threshold})
    for threshold in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
)
# (threshold, max_skip_steps, retention_ratio)
MAGCACHE_SETTINGS = (
    (0.06, 1, 0.2), (0.1, 1, 0.2), (0.1, 1, 0.5), (0.25, 2, 0.2), (0.25, 2, 0.5), (0.5, 3, 0.2), (0.5, 3, 0.5),
)  # fmt: skip
# (threshold, residual_order)
SEACACHE_SETTINGS = ((0.05, 1), (0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1), (0.4, 1))
# The comments say how many of 25 steps are computed.
TAYLORSEER_SETTINGS: dict[str, dict[str, Any]] = {
    "every 2nd of steps 4 to 13": {"cache_interval": 2, "disable_cache_after_step": 13},  # 20
    "every 2nd from step 14": {"cache_interval": 2, "disable_cache_before_step": 13},  # 19
    "every 2nd from step 4": {"cache_interval": 2},  # 14
    "every 2nd from step 4, order 2": {"cache_interval": 2, "max_order": 2},  # 14
    "every 3rd of steps 4 to 21": {"cache_interval": 3, "disable_cache_after_step": 21},  # 13
    "every 4th of steps 4 to 20": {"cache_interval": 4, "disable_cache_after_step": 20},  # 12
}
TAYLORSEER_PLACES: dict[Where, Iterable[str]] = {
    "output": TAYLORSEER_SETTINGS,
    "last block": TAYLORSEER_SETTINGS,
    # Not with compiled blocks: they are one graph, which has no hooks inside.
    "attention": ("every 2nd of steps 4 to 13", "every 2nd from step 4"),
}
TAYLORSEER = tuple(
    Candidate(f"TaylorSeer of {where}, {name}", cache=Cache("taylorseer", settings, where))
    for where, names in TAYLORSEER_PLACES.items()
    for name, settings in ((each, TAYLORSEER_SETTINGS[each]) for each in names)
)
MAGCACHE = tuple(
    Candidate(
        f"MagCache threshold={threshold}, at most {most} steps, first {first:.0%} whole",
        cache=Cache("magcache", {"threshold": threshold, "max_skip_steps": most, "retention_ratio": first}),
    )
    for threshold, most, first in MAGCACHE_SETTINGS
)
SEACACHE = tuple(
    Candidate(
        f"SeaCache threshold={threshold}, order {order}",
        cache=Cache("seacache", {"threshold": threshold, "residual_order": order}),
    )
    for threshold, order in SEACACHE_SETTINGS
)
FEWER_STEPS = tuple(Candidate(f"steps={steps}", {"steps": steps}) for steps in (22, 20, 18, 16, 15, 14, 10))
IN_FP8 = (Candidate("fp8", FP8), Candidate("fp8, steps=19", FP8 | {"steps": 19}))
FEW = (
    Candidate("8 steps, guidance 1, without the adapter", TURBO),
    Candidate("8 steps, guidance 1, the distilled adapter", TURBO, few_steps=True),
)
ALL = (*SHIPPED, *FEWER_STEPS, *GATES, *CACHES, *TAYLORSEER, *MAGCACHE, *SEACACHE, *IN_FP8, *FEW)
