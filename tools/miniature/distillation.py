"""Distilling the guided transformer to few steps without guidance, as a LoRA that lies under a request's own.

The teacher follows classifier-free guidance on a grid of noise levels that contains the student's. From each of its own
levels, the student learns the one velocity that leads to the teacher's latents at the next: the targets are points of
one path, so that student and teacher make the same image of the same noise. The states that it starts from are the
teacher's at first and its own later on, so that it learns to correct what it did before.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor

from serve_app.models.recipe import sigmas_of
from serve_app.pipeline.guidance import guide
from serve_app.pipeline.random_lora import trainer_metadata
from tools.miniature.clock import Average, Clock, Log
from tools.miniature.flow_training import Predict, draw_group, predictor
from tools.miniature.pairs import Group
from tools.miniature.style_training import Adapter

RATE = 2e-3
RANK = 16
STEPS = 8
SAMPLER: Literal["lightning"] = "lightning"
# Steps of the teacher for one of the student's, and its guidance scale: the default of requests.
SUBSTEPS, GUIDANCE = 3, 4.0
# Of the time, how much starts from the teacher's states.
FORCED = 0.3


@dataclass(frozen=True)
class Subject:
    """What is distilled at one size: packed latents of control images (K, tokens, 64), and images in a batch."""

    side: int
    controls: Tensor
    batch: int

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        return [(1, self.side // 16, self.side // 16)] * 2


@dataclass(frozen=True)
class Prompts:
    """The groups of prompts, embedded with one image, and the embeddings of the empty prompt, (1, tokens, hidden)."""

    groups: Sequence[Group]
    empty: Tensor


def train(
    transformer: QwenImageTransformer2DModel,
    subjects: Sequence[Subject],
    prompts: Sequence[Prompts],
    seconds: float,
    target: Path,
    log: Log,
    ends: Sequence[float] = (0.25, 0.55, 1.0),
) -> None:
    """Write the adapter to `target`. `ends` is when the time of each subject is over."""
    device = subjects[0].controls.device
    dice = random.Random(2)
    adapter = Adapter(transformer, "lora", RANK).to(device)
    parameters = list(adapter.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    average, clock = Average(adapter, 0.99), Clock(seconds)
    while clock.tick():
        subject = next(s for s, end in zip(subjects, ends, strict=True) if clock.share < end or end >= 1)
        seen = dice.choice(prompts)
        text, _ = draw_group(seen.groups, dice).draw(subject.batch)
        rows = torch.randint(len(subject.controls), (subject.batch,), device=device)
        control = subject.controls[rows].float()
        noise = torch.randn_like(control)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            path = teacher_path(predictor(transformer), noise, control, text, seen.empty, subject)
        for group in optimizer.param_groups:
            group["lr"] = clock.rate(RATE, warm_up=5)
        loss = follow(transformer, adapter, optimizer, path, control, text, subject, own=clock.share > FORCED)
        average.update(clock.steps)
        if clock.steps % 10 == 0:
            log("few steps", step=clock.steps, share=clock.share, side=subject.side, loss=loss)
    average.settle()
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(adapter.tensors(), target, metadata=trainer_metadata(target.stem, "", step=clock.steps))
    log("few steps", step=clock.steps, bytes=target.stat().st_size)


def levels(subject: Subject) -> list[float]:
    """The student's noise levels at a size, with the final 0."""
    return sigmas_of(STEPS, subject.controls.shape[1], SAMPLER)


@torch.no_grad()
def teacher_path(
    predict: Predict, noise: Tensor, control: Tensor, text: Tensor, empty: Tensor, subject: Subject
) -> list[Tensor]:
    """The teacher's latents at each of the student's levels, (B, tokens, 64) each, from noise to the image."""
    latents, path = noise, [noise]
    nothing = empty.expand(len(text), -1, -1)
    for high, low in itertools.pairwise(levels(subject)):
        for part in range(SUBSTEPS):
            at, after = (high + (low - high) * (part + i) / SUBSTEPS for i in (0, 1))
            wanted, unwanted = (velocity(predict, latents, control, at, each, subject) for each in (text, nothing))
            latents = latents + (after - at) * guide(wanted, unwanted, GUIDANCE, rescaled=True)
        path.append(latents)
    return path


def velocity(
    predict: Predict, latents: Tensor, control: Tensor, level: float, text: Tensor, subject: Subject
) -> Tensor:
    times = torch.full((len(latents),), level, device=latents.device)
    made = predict(torch.cat([latents, control], dim=1), times, text, subject.shapes)
    return made[:, : latents.shape[1]].float()


def follow(
    transformer: QwenImageTransformer2DModel,
    adapter: Adapter,
    optimizer: torch.optim.Optimizer,
    path: Sequence[Tensor],
    control: Tensor,
    text: Tensor,
    subject: Subject,
    *,
    own: bool,
) -> float:
    """One pass along a path, with a step of the optimizer at each level. Returns the mean squared error of velocities.

    An error counts as it moves the next latents: by the width of its step. `own`: from the student's states.
    """
    state, total, sigmas = path[0], 0.0, levels(subject)
    for step, (high, low) in enumerate(itertools.pairwise(sigmas)):
        with torch.autocast(state.device.type, torch.bfloat16, enabled=state.device.type == "cuda"):
            made = velocity(predictor(transformer, adapter.weights(1.0)), state, control, high, text, subject)
        wanted = (path[step + 1] - state) / (low - high)
        loss = (made - wanted).square().mean() * (high - low)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(adapter.parameters()), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total += float(loss.detach())
        state = state + (low - high) * made.detach() if own else path[step + 1]
    return total
