"""Guidance branches that compute each block of the transformer one after the other, so that its weights come once."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from serve_app.pipeline.forwards import Shapes, begin, end
from serve_app.pipeline.fusion import Modulation, clear_modulations, modulate


class BranchesInLockstep:
    """`Branches` of one transformer. The forwards are diffusers', step by step: the same operations on the same inputs.

    `visiting(modulation)` is the context in which a fused block's modulation can be computed.
    """

    def __init__(
        self,
        transformer: QwenImageTransformer2DModel,
        visiting: Callable[[Modulation], AbstractContextManager[None]],
    ) -> None:
        self._transformer = transformer
        self._visiting = visiting

    def predict(
        self, hidden: Tensor, times: Tensor, step: int, shapes: Shapes, prompts: Sequence[Tensor]
    ) -> list[Tensor]:
        """As `Branches.predict`."""
        transformer = self._transformer
        modulate(transformer, times, step, self._visiting)
        forwards = [begin(transformer, hidden, times[step : step + 1], shapes, prompt) for prompt in prompts]
        for block in transformer.transformer_blocks:
            for forward in forwards:
                forward.through(block)
        return [end(transformer, forward) for forward in forwards]

    def end(self) -> None:
        """As `Branches.end`."""
        clear_modulations(self._transformer)
