"""A cache of tensors by their inputs, with a byte budget and least-recently-used eviction."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor


class TensorCache:
    """Returns the cached tensors themselves, so callers must not write to them. Not thread-safe."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._tensors: OrderedDict[Hashable, Tensor] = OrderedDict()  # least recently used first
        self.size_bytes = 0
        self.hits = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._tensors

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """The tensor of `key`, computed by `compute` if it is not cached. `key` holds every input of `compute`."""
        if key in self._tensors:
            self._tensors.move_to_end(key)
            self.hits += 1
            return self._tensors[key]
        tensor = compute()
        if _size(tensor) <= self._budget:
            self._tensors[key] = tensor
            self.size_bytes += _size(tensor)
        while self.size_bytes > self._budget:
            _, evicted = self._tensors.popitem(last=False)
            self.size_bytes -= _size(evicted)
        return tensor


def _size(tensor: Tensor) -> int:
    """Bytes of the tensor's whole storage, which the tensor keeps in memory even if it is a view of a part."""
    return tensor.untyped_storage().nbytes()
