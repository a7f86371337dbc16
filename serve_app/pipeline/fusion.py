"""The transformer blocks' arithmetic in a form that compiles to few kernels: equal mathematics, other roundings.

Compiled as diffusers writes it, a block multiplies complex numbers, for which Inductor generates no code, and writes
its widest activations (tokens x 12288) twice: before and after the GELU. Each forward also reads a third of all
weights, those of the modulations, for one vector that depends only on the time.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import cycle

import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen
from torch import Tensor, nn

from serve_app.pipeline.sequence_parallel import attended

# Steps whose modulations are computed at once: 142 MB per device at the published size, 212 MB with `zero_cond_t`.
STEPS_AT_ONCE = 32


def fuse(transformer: QwenImageTransformer2DModel, *, with_gelu: bool) -> None:
    """Replace the parts of every block by the fused ones of this module.

    Blocks that `share_attention` has changed keep sharing theirs.

    `with_gelu`: a linear applies the GELU that follows it, on CUDA, for plain weights in a dtype of torch.
    """
    for block in transformer.transformer_blocks:
        shared = isinstance(block.attn.processor, JointAttention) and block.attn.processor.shared
        block.attn.set_processor(JointAttention(block.attn.processor._attention_backend, shared=shared))
        block.img_mod, block.txt_mod = Modulation(*block.img_mod), Modulation(*block.txt_mod)
        if with_gelu:
            for mlp in (block.img_mlp, block.txt_mlp):
                mlp.net[0] = LinearGelu(mlp.net[0].proj)


class Modulation(nn.Sequential):
    """A block's shifts, scales and gates, (1 or 2, 6 * width): computed by `modulate`, otherwise from its input."""

    of_steps: Tensor | None = None
    now: Tensor | None = None

    def forward(self, time: Tensor) -> Tensor:
        if self.now is not None:
            # Tells the compiler the width, which it does not know of an attribute.
            torch._check(self.now.shape[-1] == self[1].out_features)
            return self.now
        return self.compute(time)

    def compute(self, time: Tensor) -> Tensor:
        """The modulations of embedded times, (times, width): (times, 6 * width)."""
        made: Tensor = super().forward(time)  # type: ignore[no-untyped-call]
        return made


def everywhere(modulation: Modulation) -> AbstractContextManager[None]:
    """For weights that are always on the device."""
    return nullcontext()


def modulate(
    transformer: QwenImageTransformer2DModel,
    times: Tensor,
    step: int,
    visiting: Callable[[Modulation], AbstractContextManager[None]] = everywhere,
) -> None:
    """Make the next forwards use the modulations for `times[step]`; `times` (steps,) are all of an image, in [0, 1].

    Every `STEPS_AT_ONCE` steps the modulations are computed from the current weights, as one product per linear. Those
    of a step are copied to the same place in each step of an image.
    Within `visiting(modulation)` its weights are on the device. Without fused blocks, this does nothing.
    """
    found = modulations(transformer)
    index = step % STEPS_AT_ONCE
    if found and index == 0:
        some = times[step : step + STEPS_AT_ONCE]
        text_time = transformer.time_text_embed(some, times)
        images_time = text_time
        if transformer.zero_cond_t:
            # Control images are at time 0, whatever the step.
            both = torch.stack([some, torch.zeros_like(some)], dim=1).flatten()
            images_time = transformer.time_text_embed(both, times)
        for modulation, time in zip(found, cycle((images_time, text_time)), strict=False):
            with visiting(modulation):
                made = modulation.compute(time)
                modulation.of_steps = made.view(len(some), -1, made.shape[-1])
    now, of_step = [], []
    for modulation in found:
        assert modulation.of_steps is not None
        of_step.append(modulation.of_steps[index])
        if modulation.now is None:
            modulation.now = torch.empty_like(of_step[-1])
        now.append(modulation.now)
    if found:
        torch._foreach_copy_(now, of_step)


def clear_modulations(transformer: QwenImageTransformer2DModel) -> None:
    """Make the next forwards compute their modulations themselves."""
    for modulation in modulations(transformer):
        modulation.of_steps = modulation.now = None


def modulations(transformer: QwenImageTransformer2DModel) -> list[Modulation]:
    """For each block the modulation of the image stream and of the text stream; empty without fused blocks."""
    streams = [stream for block in transformer.transformer_blocks for stream in (block.img_mod, block.txt_mod)]
    return streams if isinstance(streams[0], Modulation) else []


def share_attention(transformer: QwenImageTransformer2DModel) -> None:
    """Let the blocks take part in an exchange: the same operations as diffusers' on one device, in another order."""
    for block in transformer.transformer_blocks:
        backend = block.attn.processor._attention_backend
        block.attn.set_processor(JointAttention(backend, rotated_by_complex_product, shared=True))


class JointAttention:
    """diffusers' `QwenDoubleStreamAttnProcessor2_0` without a mask.

    `shared`: to the keys and values of all devices of an exchange, if the thread computes for one.
    """

    def __init__(
        self,
        backend: AttentionBackendName | None,
        rotate: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        shared: bool = False,
    ) -> None:
        self._attention_backend = backend
        self._rotate = rotate or rotated
        self.shared = shared

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: None,
        attention_mask: None,
        image_rotary_emb: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The image stream and the text stream, (1, tokens, width) each.

        The angles are (tokens, head width / 2), complex.
        """
        images, text = hidden_states, encoder_hidden_states
        turn_images, turn_text = image_rotary_emb
        width, rotate = attn.inner_dim // attn.heads, self._rotate

        def heads(states: Tensor) -> Tensor:
            return states.view(*states.shape[:-1], -1, width)

        def query() -> Tensor:
            of_text = rotate(attn.norm_added_q(heads(attn.add_q_proj(text))), turn_text)
            return torch.cat([of_text, rotate(attn.norm_q(heads(attn.to_q(images))), turn_images)], dim=1)

        def key() -> Tensor:
            of_text = rotate(attn.norm_added_k(heads(attn.add_k_proj(text))), turn_text)
            return torch.cat([of_text, rotate(attn.norm_k(heads(attn.to_k(images))), turn_images)], dim=1)

        def value() -> Tensor:
            return torch.cat([heads(attn.add_v_proj(text)), heads(attn.to_v(images))], dim=1)

        if self.shared:
            out = attended(query(), torch.stack([key(), value()], dim=2), self._attention_backend)
        else:
            out = dispatch_attention_fn(query(), key(), value(), backend=self._attention_backend)
        text_out, images_out = out.flatten(2, 3).split([text.shape[1], images.shape[1]], dim=1)  # type: ignore[no-untyped-call]
        return attn.to_out[0](images_out.contiguous()), attn.to_add_out(text_out.contiguous())


def rotated_by_complex_product(states: Tensor, turns: Tensor) -> Tensor:
    """As `rotated`, with diffusers' own operations and roundings."""
    made: Tensor = apply_rotary_emb_qwen(states, turns, use_real=False)
    return made


def rotated(states: Tensor, turns: Tensor) -> Tensor:
    """Pairs of `states` (1, tokens, heads, width) as complex numbers, multiplied in fp32 by `turns` (tokens, width/2).

    (a + bi)(c + di) is written as (a, b) * (c, c) + (b, a) * (-d, d), which compiles to one kernel.
    """
    parts = torch.view_as_real(turns)
    cosines = parts[..., :1].expand(-1, -1, 2).flatten(1).unsqueeze(1)
    signs = torch.arange(-1, 2, 2, device=turns.device)
    sines = (parts[..., 1:] * signs).flatten(1).unsqueeze(1)
    swapped = states.view(*states.shape[:-1], -1, 2).flip(-1).flatten(-2)
    return (states.float() * cosines + swapped.float() * sines).type_as(states)


class LinearGelu(nn.Module):
    """diffusers' `GELU` (tanh form), computed in the epilogue of the matrix product, before rounding."""

    def __init__(self, proj: nn.Linear) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, states: Tensor) -> Tensor:
        made: Tensor = linear_gelu(states, self.proj.weight, self.proj.bias)
        return made


# A custom operator: Inductor would decompose torch's.
@torch.library.custom_op("serve_app::linear_gelu", mutates_args=())
def linear_gelu(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """gelu(states (..., in) @ weight (out, in)^T + bias), the tanh form, on CUDA."""
    out = torch._addmm_activation(bias, states.flatten(0, -2), weight.t(), use_gelu=True)
    return out.view(*states.shape[:-1], -1)


@linear_gelu.register_fake
def _(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return states.new_empty((*states.shape[:-1], weight.shape[0]))
