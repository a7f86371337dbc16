"""What an engine does when an operation on its devices fails."""

from collections.abc import Sequence

import torch

from serve_app.errors import DeviceLost, clear_frames
from serve_app.pipeline import device as devices


class DeviceHealth:
    """Whether an engine's devices still work. Any thread may ask."""

    def __init__(self, used: Sequence[torch.device]) -> None:
        self._devices = used
        self.alive = True

    def raise_if_lost(self, error: RuntimeError) -> None:
        """Raise DeviceLost, and set `alive` to False, if a device did not survive the failure `error`."""
        self.alive = all(map(devices.is_alive, self._devices))
        if not self.alive:
            raise DeviceLost("the device failed during an edit; its editor is being replaced") from error

    def free_memory(self, error: RuntimeError) -> None:
        """Free the memory of a failed edit: what the frames of `error` refer to, and torch's cache."""
        clear_frames(error)
        for device in self._devices:
            devices.free_cached_memory(device)
