"""Offloading: which parts of a pipeline are on the device, and when."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

import accelerate
import torch
from torch import nn

from serve_app.pipeline.checkpoint import Pipeline

OffloadName: TypeAlias = Literal["none", "model", "sequential", "stream"]
HOST = torch.device("cpu")


class Placement:
    """Moves parts to the device and back.

    `none`: all parts stay on the device. `model`: each part is on the device for its stage of an edit, as with
    diffusers' `enable_model_cpu_offload`. `sequential`: each layer is on the device only for its forward.
    """

    def __init__(self, pipeline: Pipeline, device: torch.device, offload: OffloadName) -> None:
        self.device = device
        self._moves = offload == "model"
        if offload == "sequential":
            for part in (pipeline.text_encoder, pipeline.transformer, pipeline.vae):
                # As diffusers' `enable_sequential_cpu_offload` does. The host tensors are the former parameters, so
                # writing to them changes what the next forward reads.
                accelerate.cpu_offload(part, device, offload_buffers=len(part._parameters) > 0)

    @contextmanager
    def working(self, part: nn.Module, activations: int = 0) -> Iterator[None]:
        """Within, `part` is where it can compute. It needs `activations` bytes for its tensors."""
        if not self._moves:
            yield
            return
        try:
            # `to` moves one weight after another. If the memory does not suffice, the moved ones are moved back.
            part.to(self.device)
            yield
        finally:
            part.to(HOST)

    def refresh(self, part: nn.Module) -> None:
        """The adapters of a part's weights have changed: nothing to do, since they are merged into its weights."""

    def fused(self, part: nn.Module) -> None:
        """The blocks of the transformer have been fused: nothing to do."""
