"""Where an editor's weights go: on the device, or in host memory, from which they are streamed."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from serve_app.config import ModelConfig
from serve_app.errors import CheckpointRefused
from serve_app.pipeline.device import free_memory

# The device's memory that an edit at 2048x2048 needs in addition to resident weights, at the published size (bytes).
EDIT_BYTES = 6 * 2**30
# What an edit at 1024x1024 needs with streamed weights: decoding takes the most. Then the host memory that an editor
# needs in addition to the weights.
STREAMED_EDIT_BYTES, HOST_BYTES = 13 * 2**29, 4 * 2**30

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placed:
    """A config without `auto` for `offload`, and why it is so, in a sentence for operators."""

    config: ModelConfig
    why: str


def place(config: ModelConfig, weights: Mapping[str, int], device: torch.device) -> Placed:
    """Decide what `offload: auto` means for a model whose parts have `weights` bytes, in the memory that is free now.

    Raises CheckpointRefused if neither the device nor the host has enough.
    """
    if config.offload == "none" or (config.offload == "stream" and device.type == "cpu"):
        return Placed(config, f"offload: {config.offload}, as configured")
    if device.type == "cpu":
        return Placed(config.model_copy(update={"offload": "none"}), "on a CPU, host memory is the device's memory")
    placed = place_on(config, weights, free_memory(device), free_memory(torch.device("cpu")))
    logger.info("%s", placed.why)
    return placed


def place_on(config: ModelConfig, weights: Mapping[str, int], device: int, host: int) -> Placed:
    """`place` for this many free bytes of a device and of its host."""
    total, copy = sum(weights.values()), weights["transformer"]
    if config.device_memory_bytes is not None:
        device = min(device, config.device_memory_bytes)
    found = f"{gib(total)} of weights; {gib(device)} free on the device, {gib(host)} of the host"
    if total == 0 and config.offload == "auto":
        # Not safetensors files: the engine measures when they are loaded.
        return Placed(config.model_copy(update={"offload": "none"}), "resident, since the files do not tell their size")
    copies: str | None = None
    if device >= total + copy + EDIT_BYTES:
        copies = "device"
    elif device >= total + EDIT_BYTES and host >= 1.1 * copy + HOST_BYTES:
        copies = "host"
    elif device >= total + EDIT_BYTES and host < total + HOST_BYTES and config.compile == "none":
        copies = "hooks"
    if config.adapter_weights in ("device", "host", "hooks") and device >= total:
        copies = config.adapter_weights
    if copies is not None and config.gpus_per_replica == 1 and config.offload == "auto":
        why = f"resident, copy of the transformer's weights: {copies} ({found})"
        return Placed(config.model_copy(update={"offload": "none", "adapter_weights": copies}), why)
    refused = not_streamed(config)
    if refused and device >= total:
        # The engine decides where the copies are, and refuses if there is no room for them.
        return Placed(config.model_copy(update={"offload": "none"}), f"resident, for {refused} ({found})")
    if refused:
        raise CheckpointRefused(
            f"the weights do not fit on the device, and {refused} does not allow streaming them: remove it, or take a "
            f"card with more memory ({found})"
        )
    if device < min(STREAMED_EDIT_BYTES, total) or host < total + HOST_BYTES:
        if config.offload == "auto" and device >= total + EDIT_BYTES:
            raise CheckpointRefused(
                f"compile: {config.compile} needs {gib(int(1.1 * copy) + HOST_BYTES)} of the host for a copy of the "
                f"transformer's weights: remove it, and the weights stay on the device without a copy ({found})"
            )
        raise CheckpointRefused(
            f"too little memory: streaming needs {gib(total + HOST_BYTES)} of the host and {gib(STREAMED_EDIT_BYTES)} "
            f"on the device, resident weights {gib(total + EDIT_BYTES)} on the device ({found})"
        )
    update = {"offload": "stream", "adapter_weights": "auto"}
    return Placed(config.model_copy(update=update), f"streamed from host memory ({found})")


def not_streamed(config: ModelConfig) -> str:
    """The first option of a config that is not combined with streaming; "" without one."""
    options = {
        f"gpus_per_replica: {config.gpus_per_replica}": config.gpus_per_replica > 1,
        "prepare_ahead: true": bool(config.prepare_ahead),
        f"quantization: {config.quantization}": config.quantization != "none",
        f"feature_cache: {config.feature_cache}": config.feature_cache is not None,
        "the feature_cache of a tier": any(tier.feature_cache is not None for tier in config.shared_tiers),
        f"adapter_weights: {config.adapter_weights}": config.adapter_weights != "auto",
    }
    return next((name for name, chosen in options.items() if chosen), "")


def gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
