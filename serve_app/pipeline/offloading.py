"""Which parts of a pipeline are on the device, and when: here all of them, always. See `streaming` for another way."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Placement:
    """All parts stay on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @contextmanager
    def working(self, part: nn.Module, activations: int = 0) -> Iterator[None]:
        """Within, `part` is where it can compute. It needs `activations` bytes for its tensors."""
        yield

    def refresh(self, part: nn.Module) -> None:
        """The adapters of a part's weights have changed: nothing to do, since they are merged into its weights."""

    def fused(self, part: nn.Module) -> None:
        """The blocks of the transformer have been fused: nothing to do."""
