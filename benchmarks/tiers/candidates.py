"""The settings that are measured: each lever alone, combinations, and those of the documented tiers."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from serve_app.tasks import AdapterUse, EditPlan


@dataclass(frozen=True)
class Candidate:
    """One setting of the levers. `changes` are fields of the exact plan that it replaces.

    With `few_steps`, the adapter that was distilled to few steps lies under the request's own.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    few_steps: bool = False

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
FEWER_STEPS = tuple(Candidate(f"steps={steps}", {"steps": steps}) for steps in (22, 16, 10))
IN_FP8 = (Candidate("fp8", FP8), Candidate("fp8, steps=19", FP8 | {"steps": 19}))
FEW = (
    Candidate("8 steps, guidance 1, without the adapter", TURBO),
    Candidate("8 steps, guidance 1, the distilled adapter", TURBO, few_steps=True),
)
ALL = (*SHIPPED, *FEWER_STEPS, *GATES, *CACHES, *IN_FP8, *FEW)
