"""Adapter files into host memory, checked against what was admitted."""

from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load

from serve_app.adapters.changes import Adapter, read_changes
from serve_app.adapters.disk import DiskCache
from serve_app.adapters.formats import Shape, read_layout
from serve_app.adapters.receipts import refuse_unfit
from serve_app.adapters.sources import fingerprint
from serve_app.errors import LoraChanged, LoraDownloadFailed, LoraInvalidFile
from serve_app.tasks import AdapterUse


def read_adapter(
    use: AdapterUse, disk: DiskCache, model: str, linears: Mapping[str, Shape], *, pinned: bool
) -> Adapter:
    """The adapter in host memory.

    Raises LoraChanged if the file is gone or is not the one that was admitted, LoraDownloadFailed if its store
    cannot be read, LoraInvalidFile if the file cannot, LoraIncompatible if it does not fit the model.
    """
    details = {"lora_path": use.path}
    try:
        if fingerprint(use.url) != use.id:
            raise LoraChanged(f"the LoRA file {use.path!r} was changed after the request was accepted", details)
        tensors = load(disk.read(use.url, use.id, use.path))
    except FileNotFoundError as error:
        raise LoraChanged(f"the LoRA file {use.path!r} was deleted after the request was accepted", details) from error
    except SafetensorError as error:
        raise LoraInvalidFile(f"the LoRA file {use.path!r} could not be read", details) from error
    except OSError as error:
        raise LoraDownloadFailed(f"the store of the LoRA file {use.path!r} could not be read", details) from error
    layout = read_layout({key: tuple(tensor.shape) for key, tensor in tensors.items()}, linears)
    refuse_unfit(layout, use.path, model)
    try:
        return Adapter(read_changes(layout, tensors), pinned=pinned)
    except ValueError as error:
        raise LoraInvalidFile(f"the LoRA file {use.path!r} has an alpha that is no number: {error}", details) from error
