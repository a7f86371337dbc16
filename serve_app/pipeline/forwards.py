"""The transformer's forward in pieces: what comes before its blocks, and what comes after them.

The operations are those of diffusers' `QwenImageTransformer2DModel.forward`, on the same inputs.
"""

from dataclasses import dataclass

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn

Shapes = list[tuple[int, int, int]]


@dataclass
class Forward:
    """A forward between two blocks: the states of images and text, and the other inputs of every block."""

    images: Tensor
    text: Tensor
    time: Tensor
    turns: tuple[Tensor, Tensor]
    times_of_images: Tensor | None

    def through(self, block: nn.Module) -> None:
        """Replace the states by the block's."""
        self.text, self.images = block(
            hidden_states=self.images,
            encoder_hidden_states=self.text,
            encoder_hidden_states_mask=None,
            temb=self.time,
            image_rotary_emb=self.turns,
            joint_attention_kwargs=None,
            modulate_index=self.times_of_images,
        )


def begin(
    transformer: QwenImageTransformer2DModel,
    hidden: Tensor,
    timestep: Tensor,
    shapes: Shapes,
    prompt: Tensor,
    rows: tuple[slice, slice] = (slice(None), slice(None)),
    text_tokens: int | None = None,
) -> Forward:
    """A forward before its first block.

    With `rows`, `hidden` and `prompt` are only these tokens of the images and of the text, which has `text_tokens`.
    """
    images = transformer.img_in(hidden)
    timestep = timestep.to(images.dtype)
    times_of_images = None
    if transformer.zero_cond_t:
        # Control images are at time 0, whatever the step.
        timestep = torch.cat([timestep, timestep * 0], dim=0)
        target, *controls = (frames * height * width for frames, height, width in shapes)
        # Made on the device: a copy from host memory would wait for all earlier work.
        of_tokens = torch.ones(target + sum(controls), device=timestep.device, dtype=torch.int)
        of_tokens[:target] = 0
        times_of_images = of_tokens[rows[0]].clone().unsqueeze(0)
    text = transformer.txt_in(transformer.txt_norm(prompt))
    time = transformer.time_text_embed(timestep, images, None)
    turns = transformer.pos_embed([shapes], max_txt_seq_len=text_tokens or text.shape[1], device=images.device)
    if text_tokens is not None:
        turns = (turns[0][rows[0]].clone(), turns[1][rows[1]])
    return Forward(images, text, time, turns, times_of_images)


def end(transformer: QwenImageTransformer2DModel, forward: Forward) -> Tensor:
    """The prediction of a forward after its last block."""
    time = forward.time.chunk(2, dim=0)[0] if transformer.zero_cond_t else forward.time
    predicted: Tensor = transformer.proj_out(transformer.norm_out(forward.images, time))
    return predicted
