"""Adapter files into host memory."""

from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load

from serve_app.adapters.changes import Adapter, read_changes
from serve_app.adapters.contents import Contents
from serve_app.adapters.formats import Shape, read_layout
from serve_app.adapters.receipts import refuse_unfit
from serve_app.errors import LoraInvalidFile
from serve_app.tasks import AdapterUse


def read_adapter(
    use: AdapterUse, contents: Contents, model: str, linears: Mapping[str, Shape], *, pinned: bool
) -> Adapter:
    """The adapter in host memory.

    Raises what `Contents.read` raises, LoraInvalidFile if the file cannot be read, LoraIncompatible if it does not
    fit the model.
    """
    content, details = contents.read(use), {"lora_path": use.path}
    try:
        tensors = load(content.data)
    except SafetensorError as error:
        raise LoraInvalidFile(f"the LoRA file {use.path!r} could not be read", details) from error
    layout = read_layout({key: tuple(tensor.shape) for key, tensor in tensors.items()}, linears)
    refuse_unfit(layout, use.path, model)
    try:
        return Adapter(read_changes(layout, tensors), pinned=pinned, sha256=content.sha256)
    except ValueError as error:
        raise LoraInvalidFile(f"the LoRA file {use.path!r} has an alpha that is no number: {error}", details) from error
