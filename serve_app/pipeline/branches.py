"""The transformer's forwards of one step: guidance branches one after the other, or in parallel on two devices."""

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
    """A copy of a transformer on another device. Nothing but the weights is copied there.

    The transformer must not be compiled yet: compiled code keeps a reference to its own weights.
    """
    # `deepcopy` takes these copies instead of copying the tensors itself.
    tensors: list[Tensor] = [*transformer.parameters(), *transformer.buffers()]
    copies: dict[int, Tensor] = {}
    for tensor in tensors:
        there = tensor.detach().to(device, copy=True)
        copies[id(tensor)] = nn.Parameter(there, requires_grad=False) if isinstance(tensor, nn.Parameter) else there
    return copy.deepcopy(transformer, copies)


class Branches:
    """One transformer, or two equal ones on two devices, of which the second computes the negative branch.

    One thread cannot keep the queues of two GPUs full, so a second thread launches the second one's work. NCCL is not
    needed: only the latents and a prediction are copied between the devices, once per step.
    """

    def __init__(self, transformers: Sequence[QwenImageTransformer2DModel], threads: int) -> None:
        self._first, *rest = transformers
        self._second = next(iter(rest), None)
        self._launcher = ThreadPoolExecutor(1, "branch", configure_thread, (threads,))

    def predict(
        self, hidden: Tensor, times: Tensor, step: int, shapes: Shapes, prompts: Sequence[Tensor]
    ) -> list[Tensor]:
        """The transformer's prediction for each of `prompts`, on `hidden`'s device.

        `hidden` are packed latents, the noisy ones and then the control images', (1, tokens, 64); `times` (steps,) are
        the times of all steps of the image, in [0, 1], and `step` is an index into them. The steps of an image must
        come in order. `shapes` are (1, height/16, width/16) of each image, in pixels.
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
        hidden_there, times_there, negative = (
            tensor.to(second.device, non_blocking=True) for tensor in (hidden, times, *rest)
        )
        pending = self._launcher.submit(
            forward_on_own_device, second, hidden_there, times_there, step, shapes, negative
        )
        try:
            modulate(self._first, times, step)
            positive = forward(self._first, hidden, timestep, shapes, first, BRANCHES[0])
        finally:
            # Even if this forward fails, the other one must not run on next to whatever follows.
            wait([pending])
        return [positive, pending.result().to(hidden.device, non_blocking=True)]


@torch.no_grad()
def forward_on_own_device(
    transformer: QwenImageTransformer2DModel,
    hidden: Tensor,
    times: Tensor,
    step: int,
    shapes: Shapes,
    prompt: Tensor,
) -> Tensor:
    """`modulate` and `forward` of the negative branch, in a thread of its own."""
    # Triton kernels run on the thread's current device.
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
    """The transformer's prediction. A feature cache holds the features of each `branch` apart."""
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
