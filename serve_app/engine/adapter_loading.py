"""Adapter files into host memory."""

from collections.abc import Mapping
from io import BytesIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from serve_app.adapters.factors import read_factors, summary
from serve_app.adapters.formats import Layout, read_layout
from serve_app.adapters.header import read_header
from serve_app.adapters.receipts import refuse_unfit
from serve_app.adapters.verified_files import AdapterFile, VerifiedFiles
from serve_app.engine.deltas import Adapter, read_changes
from serve_app.errors import LoraInvalidFile
from serve_app.models.architecture import Architecture
from serve_app.tasks import AdapterUse


def read_adapter(
    use: AdapterUse, files: VerifiedFiles, model: str, architecture: Architecture, *, pinned: bool
) -> Adapter:
    """The adapter in host memory.

    Raises what `VerifiedFiles.read` raises, LoraInvalidFile if the file cannot be read or holds what is no number,
    LoraIncompatible if it does not fit the model.
    """
    content = files.read(use)
    header = read_header(BytesIO(content.data), len(content.data), use.path)
    layout = read_layout(header.tensors, architecture.parameters)
    refuse_unfit(layout, header, use.path, model, architecture)
    found = read_factors(layout, header, use.path)
    # The whole file is here: each factor is known.
    factors = {name: value for name, (value, _) in found.items() if value is not None}
    tensors = _load(content, use)
    _refuse_non_finite(layout, tensors, use)
    changes = read_changes(layout, tensors, factors)
    return Adapter(changes, pinned=pinned, sha256=content.sha256, factor=summary(layout, found))


def _load(content: AdapterFile, use: AdapterUse) -> dict[str, Tensor]:
    try:
        return load(content.data)
    except SafetensorError as error:
        message = f"the LoRA file {use.path!r} could not be read"
        raise LoraInvalidFile(message, {"lora_path": use.path}) from error


def _refuse_non_finite(layout: Layout, tensors: Mapping[str, Tensor], use: AdapterUse) -> None:
    """Raise LoraInvalidFile if a change holds NaN or Inf: no multiplier makes an image of it."""
    for module in layout.modules.values():
        for part, key in module.parts.items():
            if part != "alpha" and not is_finite(tensors[key]):
                raise LoraInvalidFile(
                    f"the LoRA file {use.path!r} holds NaN or Inf in {key}: it is damaged, or its training diverged; "
                    "use an earlier checkpoint of it",
                    {"lora_path": use.path},
                )


def is_finite(tensor: Tensor) -> bool:
    """Whether every number in a tensor is one. A sum reads it once; it is finite only if all numbers are."""
    if tensor.element_size() == 1:
        # torch adds no numbers of eight bits.
        tensor = tensor.to(torch.float16)
    total = tensor.sum(dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32)
    # A sum of finite numbers may overflow.
    return bool(total.isfinite()) or bool(tensor.isfinite().all())
