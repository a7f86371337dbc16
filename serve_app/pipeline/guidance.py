"""Classifier-free guidance, and the gate that leaves its negative branch out of an edit's later steps.

The gate's two forms are known from text-to-image: "drop" is limited-interval guidance (Kynkaanniemi et al. 2024,
arXiv:2404.07724) with an interval that starts at the first step; "reuse" keeps the last difference of the branches, as
FasterCache does (Lv et al. 2024, arXiv:2410.19355), without its correction of frequencies.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from serve_app.config import GateRest


def guide(conditional: Tensor, unconditional: Tensor, scale: float, *, rescaled: bool) -> Tensor:
    """Classifier-free guidance. `rescaled` scales each token to the norm of the conditional prediction."""
    combined = unconditional + scale * (conditional - unconditional)
    return to_norm_of(conditional, combined) if rescaled else combined


def guide_by(conditional: Tensor, difference: Tensor, scale: float, *, rescaled: bool) -> Tensor:
    """The same with `difference` in the place of conditional - unconditional: c + (scale - 1) * difference."""
    combined = conditional + (scale - 1) * difference
    return to_norm_of(conditional, combined) if rescaled else combined


def to_norm_of(conditional: Tensor, combined: Tensor) -> Tensor:
    """`combined` with the norm that `conditional` has, token by token."""
    return combined * (conditional.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))


@dataclass
class Guidance:
    """The guidance of one edit, whose steps are made in order.

    The first `guided_steps` steps compute both branches, c (the prompt) and u (the negative prompt), and follow
    u + scale * (c - u). A later step computes c alone. With `rest` "drop" it follows c; with "reuse" it follows
    c + (scale - 1) * d, where d is c - u of the last step that computed both. With `rescaled`, each token of what a
    step follows is scaled to the norm of the step's own c; for "drop" that changes nothing.
    """

    scale: float
    rescaled: bool
    guided_steps: int
    rest: GateRest = "drop"
    _difference: Tensor | None = None

    def prompts_of(self, step: int, prompts: Sequence[Tensor]) -> Sequence[Tensor]:
        """The prompts, of [positive] or [positive, negative], whose branches the step (0-based) computes."""
        return prompts if step < self.guided_steps else prompts[:1]

    def combine(self, step: int, predictions: Sequence[Tensor]) -> Tensor:
        """What the step follows, of the predictions for `prompts_of(step, ...)`."""
        conditional, *rest = predictions
        if rest:
            [unconditional] = rest
            if self.rest == "reuse" and step == self.guided_steps - 1:
                self._difference = conditional - unconditional
            return guide(conditional, unconditional, self.scale, rescaled=self.rescaled)
        if self._difference is not None:
            return guide_by(conditional, self._difference, self.scale, rescaled=self.rescaled)
        return conditional
