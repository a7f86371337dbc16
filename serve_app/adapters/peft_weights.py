"""Adapters beside the weights, through diffusers' loader and PEFT's layers."""

import fsspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from serve_app.adapters.header import count_modules
from serve_app.adapters.sources import fingerprint
from serve_app.errors import LoraChanged, LoraIncompatible, LoraInvalidFile
from serve_app.models.checkpoint import Pipeline
from serve_app.tasks import AdapterUse


def read(use: AdapterUse) -> dict[str, Tensor]:
    """The adapter's tensors in host memory.

    Raises LoraChanged if the file is gone or is not the one that was admitted, LoraInvalidFile if it cannot
    be read.
    """
    details = {"lora_path": use.path}
    try:
        if fingerprint(use.url) != use.id:
            raise LoraChanged(f"the LoRA file {use.path!r} was changed after the request was accepted", details)
        with fsspec.open(use.url, "rb") as file:
            return load(file.read())
    except FileNotFoundError as error:
        raise LoraChanged(f"the LoRA file {use.path!r} was deleted after the request was accepted", details) from error
    except (OSError, SafetensorError) as error:
        raise LoraInvalidFile(f"the LoRA file {use.path!r} could not be read", details) from error


class PeftWeights:
    """The adapters that hang on one pipeline's transformer. One caller at a time."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._transformer = pipeline.transformer

    def load(self, use: AdapterUse, tensors: dict[str, Tensor]) -> None:
        """Hang an adapter on the transformer, inactive.

        Raises LoraIncompatible, and leaves no trace, unless every pair of the file found its module: an
        adapter that does nothing, or half of what it should, is never served.
        """
        expected = count_modules(tensors)
        dtype = self._transformer.dtype
        tensors = {key: t if key.endswith(".alpha") else t.to(dtype) for key, t in tensors.items()}
        details = {"lora_path": use.path, "modules_in_file": expected}
        try:
            self._pipeline.load_lora_weights(tensors, adapter_name=use.id)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            # The device's trouble, not the file's.
            self.unload(use.id)
            raise
        except Exception as error:
            # The loader's ways to refuse are many: ValueError, KeyError, RuntimeError by what the file holds.
            self.unload(use.id)
            raise LoraIncompatible(f"the LoRA {use.path!r} does not fit the model", details) from error
        applied = self._modules(use.id)
        if applied == 0 or applied != expected:
            self.unload(use.id)
            raise LoraIncompatible(
                f"the LoRA {use.path!r} has {expected} modules, of which {applied} fit the model",
                details | {"modules_applied": applied},
            )
        self._transformer.disable_lora()

    def unload(self, adapter_id: str) -> None:
        """Take an adapter off the transformer, if it is there."""
        if self._modules(adapter_id):
            self._transformer.delete_adapters(adapter_id)

    @torch.no_grad()
    def activate(self, scales: dict[str, float]) -> None:
        """Make the loaded adapters of `scales`, each with its multiplier, the ones that work; {} is none."""
        if scales:
            self._transformer.enable_lora()
            self._transformer.set_adapters(list(scales), list(scales.values()))
        elif getattr(self._transformer, "peft_config", None):
            self._transformer.disable_lora()

    def _modules(self, adapter_id: str) -> int:
        return sum(adapter_id in getattr(module, "lora_A", ()) for module in self._transformer.modules())
