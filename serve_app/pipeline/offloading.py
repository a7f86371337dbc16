"""Where a pipeline's parts lie while they work, and while they wait."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

import accelerate
import torch
from torch import nn

from serve_app.pipeline.checkpoint import Pipeline

OffloadName: TypeAlias = Literal["none", "model", "sequential"]
HOST = torch.device("cpu")


class Placement:
    """`none`: all parts on the device. `model`: in host memory, each on the device for its stage of an edit, as
    diffusers' `enable_model_cpu_offload` has them. `sequential`: each layer on the device for its forward alone.
    """

    def __init__(self, pipeline: Pipeline, device: torch.device, offload: OffloadName) -> None:
        self.device = device
        self._moves = offload == "model"
        if offload == "sequential":
            for part in (pipeline.text_encoder, pipeline.transformer, pipeline.vae):
                # What diffusers' `enable_sequential_cpu_offload` does. The tensors in host memory are those that the
                # parameters were before, so whoever holds them writes what the next forward reads.
                accelerate.cpu_offload(part, device, offload_buffers=len(part._parameters) > 0)

    @contextmanager
    def working(self, part: nn.Module) -> Iterator[None]:
        """`part` can compute within."""
        if not self._moves:
            yield
            return
        try:
            # It moves one weight after another: where there is no room for all, those that were moved come back.
            part.to(self.device)
            yield
        finally:
            part.to(HOST)
