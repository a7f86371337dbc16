"""Guidance branches that compute each block of the transformer one after the other, so that its weights come once."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from serve_app.pipeline.branches import Shapes
from serve_app.pipeline.fusion import Modulation, modulate


@dataclass
class Forward:
    """A forward between two blocks: the states of images and text, and what every block gets besides."""

    images: Tensor
    text: Tensor
    time: Tensor
    turns: tuple[Tensor, Tensor]
    times_of_images: Tensor | None


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
                forward.text, forward.images = block(
                    hidden_states=forward.images,
                    encoder_hidden_states=forward.text,
                    encoder_hidden_states_mask=None,
                    temb=forward.time,
                    image_rotary_emb=forward.turns,
                    joint_attention_kwargs=None,
                    modulate_index=forward.times_of_images,
                )
        return [end(transformer, forward) for forward in forwards]


def begin(
    transformer: QwenImageTransformer2DModel, hidden: Tensor, timestep: Tensor, shapes: Shapes, prompt: Tensor
) -> Forward:
    """A forward before its first block, as `QwenImageTransformer2DModel.forward` makes it."""
    images = transformer.img_in(hidden)
    timestep = timestep.to(images.dtype)
    times_of_images = None
    if transformer.zero_cond_t:
        # Control images are at time 0, whatever the step.
        timestep = torch.cat([timestep, timestep * 0], dim=0)
        target, *controls = (frames * rows * columns for frames, rows, columns in shapes)
        times_of_images = torch.tensor([[0] * target + [1] * sum(controls)], device=timestep.device, dtype=torch.int)
    text = transformer.txt_in(transformer.txt_norm(prompt))
    return Forward(
        images,
        text,
        transformer.time_text_embed(timestep, images, None),
        transformer.pos_embed([shapes], max_txt_seq_len=text.shape[1], device=images.device),
        times_of_images,
    )


def end(transformer: QwenImageTransformer2DModel, forward: Forward) -> Tensor:
    """The prediction of a forward after its last block."""
    time = forward.time.chunk(2, dim=0)[0] if transformer.zero_cond_t else forward.time
    predicted: Tensor = transformer.proj_out(transformer.norm_out(forward.images, time))
    return predicted
