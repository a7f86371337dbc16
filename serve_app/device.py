"""The device that an editor computes on: which one, in which dtype, and whether it still works."""

import logging

import psutil
import torch

logger = logging.getLogger(__name__)


def choose(device: str) -> torch.device:
    """The torch device for the config's `auto`, `cpu` or `cuda`. Raises RuntimeError for a cuda that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("the config says device: cuda, but torch finds no CUDA device")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def dtype_for(device: torch.device) -> torch.dtype:
    """fp32 on a CPU; bf16 on CUDA, or fp16 where the card has no bf16."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def is_alive(device: torch.device) -> bool:
    """Whether the device still computes: False once its context is dead, after an illegal access for example.

    Such a context never recovers within its process, so the process has to be replaced.
    """
    try:
        total = torch.ones(8, device=device).sum().item()
    except RuntimeError:
        logger.exception("the device %s does not answer any more", device)
        return False
    return total == 8.0


def free_memory(device: torch.device) -> int:
    """Bytes that could be allocated now: on the card, or of the machine for the CPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(psutil.virtual_memory().available)


def free_cached_memory(device: torch.device) -> None:
    """Give cached blocks back to the card, after an edit that ran out of memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
