"""Training a LoRA or a LoKr on the finished transformer, and writing it as ostris/ai-toolkit writes its own."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor

from serve_app.models.architecture import BLOCK_LINEARS
from serve_app.pipeline.random_lora import trainer_metadata
from tools.miniature.clock import Average, Clock, Log
from tools.miniature.edits import Style
from tools.miniature.flow_training import draw_group, flow_loss, predictor
from tools.miniature.pairs import Group, Pool

RATE = 3e-3
RANK = 8
# The left side of a LoKr's product: 4 x 4.
FACTOR = 4
# What the trainer writes next to two whole matrices, which no reader uses.
LOKR_ALPHA = 1e10
# One step in five is made at half the multiplier, with latents half-way between base edit and style.
HALFWAY = 0.2


class Adapter(torch.nn.Module):
    """The change of every linear of every block, as parameters."""

    def __init__(self, transformer: QwenImageTransformer2DModel, kind: str, rank: int = RANK) -> None:
        super().__init__()
        self.kind = kind
        self._rank = rank
        self.names = [
            f"transformer_blocks.{block}.{name}"
            for block in range(transformer.config.num_layers)
            for name in BLOCK_LINEARS
        ]
        self._base = {name: transformer.get_submodule(name).weight for name in self.names}
        parts = [self._parts(*weight.shape) for weight in self._base.values()]
        self.left = torch.nn.ParameterList([left for left, _ in parts])
        self.right = torch.nn.ParameterList([right for _, right in parts])

    def _parts(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """The factors of a change of rows x columns: (up, down), or (left, right) of a Kronecker product."""
        if self.kind == "lora":
            return torch.zeros(rows, self._rank), torch.randn(self._rank, columns) / columns**0.5
        return torch.randn(FACTOR, FACTOR) / FACTOR, torch.zeros(rows // FACTOR, columns // FACTOR)

    def weights(self, scale: float) -> dict[str, Tensor]:
        product = torch.matmul if self.kind == "lora" else torch.kron
        return {
            f"{name}.weight": self._base[name] + scale * product(left, right)
            for name, left, right in zip(self.names, self.left, self.right, strict=True)
        }

    def tensors(self) -> dict[str, Tensor]:
        """By the trainer's keys, in bf16."""
        made: dict[str, Tensor] = {}
        for name, left, right in zip(self.names, self.left, self.right, strict=True):
            key = f"diffusion_model.{name}"
            if self.kind == "lora":
                made |= {f"{key}.lora_A.weight": right, f"{key}.lora_B.weight": left}
            else:
                made |= {f"{key}.lokr_w1": left, f"{key}.lokr_w2": right, f"{key}.alpha": torch.tensor(LOKR_ALPHA)}
        return {key: tensor.detach().to("cpu", torch.bfloat16).contiguous() for key, tensor in made.items()}


def train(
    transformer: QwenImageTransformer2DModel,
    style: Style,
    pools: Sequence[tuple[Pool, Pool]],
    groups: Sequence[Group],
    seconds: float,
    batches: Sequence[int],
    target: Path,
    log: Log,
    ends: Sequence[float] = (0.45, 0.8, 1.0),
) -> None:
    """Write a trained adapter to `target`. `pools` are (base edits, the same in this style), by size."""
    device = pools[0][0].controls.device
    dice = random.Random(1)
    adapter = Adapter(transformer, style.kind).to(device)
    parameters = list(adapter.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    average, clock = Average(adapter, 0.995), Clock(seconds)
    total = torch.zeros((), device=device)
    while clock.tick():
        base, styled = stage_of(pools, clock.share, ends)
        side = [pair[1].side for pair in pools].index(styled.side)
        text, meanings = draw_group(groups, dice).draw(batches[side])
        scale = 0.5 if dice.random() < HALFWAY else 1.0
        rows = torch.randint(len(styled.controls), (len(meanings),), device=device)
        clean, control = styled.edits[rows, meanings].float(), styled.controls[rows].float()
        if scale < 1:
            clean = (clean + base.edits[rows, meanings].float()) / 2
        for group in optimizer.param_groups:
            group["lr"] = clock.rate(RATE, warm_up=50)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = flow_loss(predictor(transformer, adapter.weights(scale)), clean, control, text, styled.side)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(clock.steps)
        total += loss.detach()
        if clock.steps % 100 == 0:
            log(style.name, step=clock.steps, share=clock.share, side=styled.side, loss=total.item() / 100)
            total.zero_()
    average.settle()
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(adapter.tensors(), target, metadata=trainer_metadata(target.stem, style.trigger, step=clock.steps))
    log(style.name, step=clock.steps, bytes=target.stat().st_size)


def stage_of(pools: Sequence[tuple[Pool, Pool]], share: float, ends: Sequence[float]) -> tuple[Pool, Pool]:
    return next(pair for pair, end in zip(pools, ends, strict=True) if share < end or end >= 1)
