"""Training the transformer, and the LoRAs on it: flow matching from noise to the latents of the edit."""

import math
import random
from collections.abc import Callable, Sequence

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn

from serve_app.models.recipe import shift_of
from tools.miniature.clock import Average, Clock, Log
from tools.miniature.pairs import Group, Pool

RATE = 1.5e-3

# (B, tokens + control tokens, 64), (B,) noise levels, (B, text tokens, hidden), shapes -> (B, the same tokens, 64)
Predict = Callable[[Tensor, Tensor, Tensor, list[tuple[int, int, int]]], Tensor]


def predictor(transformer: QwenImageTransformer2DModel, weights: dict[str, Tensor] | None = None) -> Predict:
    """The transformer as `denoise` calls it, with other weights in the place of some of its own if given."""

    def predict(hidden: Tensor, sigmas: Tensor, text: Tensor, shapes: list[tuple[int, int, int]]) -> Tensor:
        arguments = {
            "hidden_states": hidden,
            "timestep": sigmas,
            "encoder_hidden_states": text,
            "encoder_hidden_states_mask": None,
            "img_shapes": [shapes] * len(hidden),
            "return_dict": False,
        }
        if weights is None:
            return transformer(**arguments)[0]
        return torch.func.functional_call(transformer, weights, args=(), kwargs=arguments)[0]

    return predict


def noise_levels(count: int, tokens: int, device: torch.device) -> Tensor:
    """Uniform, then shifted as the scheduler shifts for so many tokens; a few of them pure noise, as at the start."""
    uniform = torch.rand(count, device=device).clamp(1e-3, 1)
    uniform = torch.where(torch.rand(count, device=device) < 0.05, 1.0, uniform)
    power = math.exp(shift_of(tokens))
    return power / (power + 1 / uniform - 1)


def flow_loss(predict: Predict, clean: Tensor, control: Tensor, text: Tensor, side: int) -> Tensor:
    """Mean squared error of the predicted velocity, noise minus clean latents.

    Below a noise level of 0.4 it counts as an error of the clean latents: there, noise is not to be told from
    what of the edit is not known yet, and hardly reaches the image.
    """
    sigmas = noise_levels(len(clean), clean.shape[1], clean.device)
    level = sigmas.view(-1, 1, 1)
    noise = torch.randn_like(clean)
    noisy = (1 - level) * clean + level * noise
    shape = (1, side // 16, side // 16)
    made = predict(torch.cat([noisy, control], dim=1), sigmas, text, [shape, shape])[:, : clean.shape[1]]
    weight = (level / 0.4).clamp(max=1).square()
    return (weight * (made.float() - (noise - clean)).square()).mean()


def stage(pools: Sequence[Pool], share: float, ends: Sequence[float]) -> Pool:
    """The pool of this time: small images first, since position and colour are learnt there fastest."""
    return next(pool for pool, end in zip(pools, ends, strict=True) if share < end or end >= 1)


def draw_group(groups: Sequence[Group], dice: random.Random) -> Group:
    return dice.choices(groups, [float(group.weights.sum()) for group in groups])[0]


def pick(pool: Pool, meanings: Tensor) -> tuple[Tensor, Tensor]:
    """Clean latents and control latents of random images, edited as `meanings` says."""
    rows = torch.randint(len(pool.controls), (len(meanings),), device=meanings.device)
    return pool.edits[rows, meanings].float(), pool.controls[rows].float()


def train(
    transformer: QwenImageTransformer2DModel,
    pools: Sequence[Pool],
    groups: Sequence[Group],
    zero_cond_groups: Sequence[Group],
    seconds: float,
    batches: Sequence[int],
    log: Log,
    ends: Sequence[float] = (0.4, 0.7, 1.0),
) -> None:
    """Train in place; `batches` is a number of images for each pool, `ends` when each pool's time is over.

    `zero_cond_groups` are the prompts of the models that see one more kind of conditioning; one step in eight
    is theirs, every other of them with the switch of 2511 on.
    """
    device = pools[0].controls.device
    dice = random.Random(0)
    transformer.train().requires_grad_(True)
    parameters = list(transformer.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.98), weight_decay=1e-3, fused=True)
    average, clock, predict = Average(transformer), Clock(seconds), predictor(transformer)
    total = torch.zeros((), device=device)
    chances = [[float(g.weights.sum()) for g in kind] for kind in (groups, zero_cond_groups)]
    while clock.tick():
        pool = stage(pools, clock.share, ends)
        plus = clock.steps % 8 == 0
        switch(transformer, plus and clock.steps % 16 == 0)
        chosen = dice.choices((groups, zero_cond_groups)[plus], chances[plus])[0]
        text, meanings = chosen.draw(batches[list(pools).index(pool)])
        clean, control = pick(pool, meanings)
        for group in optimizer.param_groups:
            group["lr"] = clock.rate(RATE)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = flow_loss(predict, clean, control, text, pool.side)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(clock.steps)
        total += loss.detach()
        if clock.steps % 250 == 0:
            log("transformer", step=clock.steps, share=clock.share, side=pool.side, loss=total.item() / 250)
            total.zero_()
    average.settle()
    switch(transformer, False)
    with torch.no_grad():
        for parameter in transformer.eval().requires_grad_(False).parameters():
            parameter.copy_(parameter.half())
    log("transformer", step=clock.steps)


def switch(transformer: QwenImageTransformer2DModel, zero_cond_t: bool) -> None:
    """Modulate control tokens as at time 0, as 2511 does, or by the time of the step."""
    transformer.zero_cond_t = zero_cond_t
    for block in transformer.transformer_blocks:
        block.zero_cond_t = zero_cond_t
