"""Tensors by what they were computed from, kept by a byte budget, given up least recently used first."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor


class TensorCache:
    """Exact: a tensor comes back as it was computed, so whoever gets one must not write to it. One caller at a time."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()  # least recently used first
        self.size_bytes = 0
        self.hits = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """The tensor of `key`, by `compute` if it is not here. `key` names everything that decides it."""
        if key in self._kept:
            self._kept.move_to_end(key)
            self.hits += 1
            return self._kept[key]
        tensor = compute()
        if _size(tensor) <= self._budget:
            self._kept[key] = tensor
            self.size_bytes += _size(tensor)
        while self.size_bytes > self._budget:
            _, given_up = self._kept.popitem(last=False)
            self.size_bytes -= _size(given_up)
        return tensor


def _size(tensor: Tensor) -> int:
    """Bytes that a tensor keeps from being freed: of its whole storage, whatever part of it it shows."""
    return tensor.untyped_storage().nbytes()
