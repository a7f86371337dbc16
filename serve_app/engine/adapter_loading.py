"""Reads adapter files into host memory."""

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
from serve_app.engine.deltas import Adapter, read_deltas
from serve_app.errors import LoraInvalidFile
from serve_app.models.architecture import Architecture
from serve_app.tasks import AdapterUse


def read_adapter(
    use: AdapterUse, files: VerifiedFiles, model: str, architecture: Architecture, *, pinned: bool
) -> Adapter:
    """Read an adapter's file into host memory. Blocks.

    Raises the errors of `VerifiedFiles.read`, LoraInvalidFile if the file cannot be parsed or contains NaN or Inf, and
    LoraIncompatible if it does not fit the model.
    """
    content = files.read(use)
    header = read_header(BytesIO(content.data), len(content.data), use.path)
    layout = read_layout(header.tensors, architecture.parameters)
    refuse_unfit(layout, header, use.path, model, architecture)
    found = read_factors(layout, header, use.path)
    # The whole file has been read, so every factor is known.
    factors = {name: value for name, (value, _) in found.items() if value is not None}
    tensors = _load(content, use)
    _refuse_non_finite(layout, tensors, use)
    deltas = read_deltas(layout, tensors, factors)
    return Adapter(deltas, pinned=pinned, sha256=content.sha256, factor=summary(layout, found))


def _load(content: AdapterFile, use: AdapterUse) -> dict[str, Tensor]:
    try:
        return load(content.data)
    except SafetensorError as error:
        message = f"the LoRA file {use.path!r} could not be read"
        raise LoraInvalidFile(message, {"lora_path": use.path}) from error


def _refuse_non_finite(layout: Layout, tensors: Mapping[str, Tensor], use: AdapterUse) -> None:
    """Raise LoraInvalidFile if a tensor contains NaN or Inf: the image would be unusable at any multiplier."""
    for module in layout.modules.values():
        for part, key in module.parts.items():
            if part != "alpha" and not is_finite(tensors[key]):
                raise LoraInvalidFile(
                    f"the LoRA file {use.path!r} holds NaN or Inf in {key}: it is damaged, or its training diverged; "
                    "use an earlier checkpoint of it",
                    {"lora_path": use.path},
                )


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor Inf. A sum reads it only once, and is finite only if all elements are."""
    if tensor.element_size() == 1:
        # torch cannot add 8-bit floats.
        tensor = tensor.to(torch.float16)
    total = tensor.sum(dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32)
    # A sum of finite numbers may overflow.
    return bool(total.isfinite()) or bool(tensor.isfinite().all())
