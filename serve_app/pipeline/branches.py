"""The transformer's forwards of one step: one guidance branch after the other, or each on a device of its own."""

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn

from serve_app.pipeline.acceleration import configure_thread
from serve_app.pipeline.fusion import modulate

Shapes = list[tuple[int, int, int]]

BRANCHES = ("positive", "negative")


def copy_to_device(transformer: QwenImageTransformer2DModel, device: torch.device) -> QwenImageTransformer2DModel:
    """A transformer with the same weights on another device; nothing but the weights is copied there.

    Of one that is not compiled yet: what is compiled keeps its own weights.
    """
    # What the copying of the modules takes for the copies of these tensors.
    tensors: list[Tensor] = [*transformer.parameters(), *transformer.buffers()]
    copies: dict[int, Tensor] = {}
    for tensor in tensors:
        there = tensor.detach().to(device, copy=True)
        copies[id(tensor)] = nn.Parameter(there, requires_grad=False) if isinstance(tensor, nn.Parameter) else there
    return copy.deepcopy(transformer, copies)


class Branches:
    """One transformer, or two that are alike, each on a device of its own: the second one does the negative branch.

    One thread cannot keep the queues of two GPUs full, so the second has a thread that launches its work. No NCCL:
    what goes between them is the latents and a prediction, once a step.
    """

    def __init__(self, transformers: Sequence[QwenImageTransformer2DModel], threads: int) -> None:
        self._first, *rest = transformers
        self._second = next(iter(rest), None)
        self._launcher = ThreadPoolExecutor(1, "branch", configure_thread, (threads,))

    def predict(
        self, hidden: Tensor, times: Tensor, step: int, shapes: Shapes, prompts: Sequence[Tensor]
    ) -> list[Tensor]:
        """What the transformer predicts for each of `prompts`, on `hidden`'s device.

        `hidden` are packed latents, the control images' behind the noisy ones, (1, tokens, 64); `times` (steps,) are
        those of the whole image, in [0, 1], and `step` is the index of one; an image's steps come in their order.
        `shapes` are (1, height/16, width/16) of each image, in pixels.
        """
        first, *rest = prompts
        second = self._second
        timestep = times[step : step + 1]
        if second is None or not rest:
            modulate(self._first, times, step)
            return [
                forward(self._first, hidden, timestep, shapes, prompt, branch)
                for branch, prompt in zip(BRANCHES[: len(prompts)], prompts, strict=True)
            ]
        over, then, negative = (tensor.to(second.device, non_blocking=True) for tensor in (hidden, times, *rest))
        coming = self._launcher.submit(forward_there, second, over, then, step, shapes, negative)
        try:
            modulate(self._first, times, step)
            mine = forward(self._first, hidden, timestep, shapes, first, BRANCHES[0])
        finally:
            # Where this one fails, the other one must not go on beside what comes next.
            wait([coming])
        return [mine, coming.result().to(hidden.device, non_blocking=True)]


@torch.no_grad()
def forward_there(
    transformer: QwenImageTransformer2DModel,
    hidden: Tensor,
    times: Tensor,
    step: int,
    shapes: Shapes,
    prompt: Tensor,
) -> Tensor:
    """`modulate` and `forward` for a thread of its own."""
    # Kernels that are launched by hand go to the thread's current device.
    with torch.cuda.device(hidden.device) if hidden.is_cuda else nullcontext():
        modulate(transformer, times, step)
        return forward(transformer, hidden, times[step : step + 1], shapes, prompt, BRANCHES[1])


def forward(
    transformer: QwenImageTransformer2DModel,
    hidden: Tensor,
    timestep: Tensor,
    shapes: Shapes,
    prompt: Tensor,
    branch: str,
) -> Tensor:
    """What it predicts. A feature cache remembers by `branch`."""
    with transformer.cache_context(branch) if transformer.is_cache_enabled else nullcontext():
        predicted: Tensor = transformer(
            hidden_states=hidden,
            timestep=timestep,
            encoder_hidden_states=prompt,
            encoder_hidden_states_mask=None,
            img_shapes=[shapes],
            return_dict=False,
        )[0]
    return predicted
