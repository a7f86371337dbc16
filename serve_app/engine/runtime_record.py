"""The part of an edit's record that only its engine knows: device, memory, versions."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import diffusers
import torch
import transformers

from serve_app.config import ModelConfig
from serve_app.engine.deltas import Adapter
from serve_app.engine.denoiser import Denoiser


def runtime_record(
    config: ModelConfig,
    denoiser: Denoiser,
    device: torch.device,
    threads: int,
    recompilations: int,
    adapters: Iterable[tuple[str, Adapter]],
) -> dict[str, Any]:
    """The record, ready for JSON. `adapters` are those of the edit, each with its id, in the plan's order."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "peak_memory_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if on_gpu else None,
        "dtype": str(denoiser.transformers[0].dtype).removeprefix("torch."),
        "threads": threads,
        "adapter_weights": denoiser.copies,
        # `auto` is resolved before the weights are read; a pipeline that is given is resident.
        "offload": "stream" if config.offload == "stream" else "none",
        "transformers": len(denoiser.transformers),
        "attention": config.attention,
        "compile": config.compile,
        "quantization": config.quantization,
        "feature_cache": config.feature_cache,
        "recompilations": recompilations,
        "adapters": [_adapter(adapter_id, adapter) for adapter_id, adapter in adapters],
        # As plain strings: unpickling torch's own version type would import torch.
        "versions": {module.__name__: str(module.__version__) for module in (torch, diffusers, transformers)},
    }


def _adapter(adapter_id: str, adapter: Adapter) -> dict[str, Any]:
    """The digest of the adapter's file, and the factor of its deltas."""
    factor = None if adapter.factor is None else asdict(adapter.factor)
    return {"id": adapter_id, "sha256": adapter.sha256, "factor": factor}
