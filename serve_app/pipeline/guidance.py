"""Classifier-free guidance, and what steps follow whose forwards a gate leaves out.

"drop" is limited-interval guidance (Kynkaanniemi et al. 2024, arXiv:2404.07724) with an interval that starts at the
first step; "reuse" keeps the last difference of the branches, as FasterCache does (Lv et al. 2024, arXiv:2410.19355),
without its correction of frequencies. Steps without any forward are TaylorSeer's (Liu et al. 2025, arXiv:2503.06923)
of first order, of the transformer's output alone, over noise levels instead of the numbers of steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

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
class Line:
    """The last two values of a tensor that changes with the noise level, and the line through them."""

    values: list[tuple[float, Tensor]] = field(default_factory=list)

    def add(self, level: float, value: Tensor) -> None:
        self.values = [*self.values[-1:], (level, value)]

    def last(self) -> Tensor:
        return self.values[-1][1]

    def at(self, level: float) -> Tensor:
        """The value at a level beyond the last one; the only value if there is one."""
        if len(self.values) == 1:
            return self.last()
        (before, earlier), (now, latest) = self.values
        return latest + (level - now) / (now - before) * (latest - earlier)


@dataclass
class Guidance:
    """The guidance of one edit, whose steps are made in order.

    A step (0-based) of `guided_steps` computes both branches, c (the prompt) and u (the negative prompt), and follows
    u + scale * (c - u). Another step of `computed_steps` computes c alone. With `rest` "drop" it follows c, with
    "reuse" c + (scale - 1) * d, where d is c - u of the last step that computed both. A step that computes nothing
    takes c, and d if a later step computes both again, from the lines through the last two values over the noise
    level. With `rescaled`, each token of what a step follows is scaled to the norm of the step's c.
    """

    scale: float
    rescaled: bool
    steps: int
    computed_steps: tuple[int, ...]
    guided_steps: tuple[int, ...]
    rest: GateRest = "drop"
    _conditional: Line = field(default_factory=Line)
    _difference: Line = field(default_factory=Line)

    def prompts_of(self, step: int, prompts: Sequence[Tensor]) -> Sequence[Tensor]:
        """The prompts, of [positive] or [positive, negative], whose branches the step computes."""
        if step not in self.computed_steps:
            return []
        return prompts if step in self.guided_steps else prompts[:1]

    def follow(self, step: int, level: float, predictions: Sequence[Tensor]) -> Tensor:
        """What a step at a noise level follows, of the predictions for its `prompts_of`."""
        self._remember(level, predictions)
        conditional = predictions[0] if predictions else self._conditional.at(level)
        if len(predictions) == 2:
            return guide(conditional, predictions[1], self.scale, rescaled=self.rescaled)
        if not self.guided_steps:
            return conditional
        if step < self.guided_steps[-1]:
            return guide_by(conditional, self._difference.at(level), self.scale, rescaled=self.rescaled)
        if self.rest == "reuse":
            return guide_by(conditional, self._difference.last(), self.scale, rescaled=self.rescaled)
        return conditional

    def _remember(self, level: float, predictions: Sequence[Tensor]) -> None:
        """Keep what steps without some forward need; nothing if all steps have all forwards."""
        if predictions and len(self.computed_steps) < self.steps:
            self._conditional.add(level, predictions[0])
        if len(predictions) == 2 and len(self.guided_steps) < self.steps:
            self._difference.add(level, predictions[0] - predictions[1])
