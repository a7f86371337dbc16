"""Notes about metadata of an adapter's file that the service does not use."""

import re
from collections.abc import Iterator, Mapping

from serve_app.adapters.factors import NONE, ModuleFactor
from serve_app.adapters.formats import PEFT_PREFIX, Layout
from serve_app.adapters.header import Header
from serve_app.models.registry import model_of_metadata

# Metadata keys that may hold the alpha. diffusers' loader for these models ignores them, and files whose tensors are
# already scaled have them too (musubi-tuner).
ALPHAS = ("ss_network_alpha", "network_alpha", "lora_alpha", "alpha")
# Metadata that names the model a file was trained for: kohya's scripts and the trainer, and the model specification.
BASES = ("ss_base_model_version", "modelspec.architecture")
# Longest value of the metadata that a note repeats.
MAX_TEXT = 100


def notes_of(
    header: Header, layout: Layout, factors: Mapping[str, ModuleFactor], path: str, model: str
) -> Iterator[str]:
    """The notes about one file that is used with `model`."""
    plain = [
        module for name, module in layout.modules.items() if module.rank is not None and factors[name].source == NONE
    ]
    if plain:
        yield from _alpha_notes(header.metadata, path)
    if any(key.startswith(PEFT_PREFIX) for module in plain for key in module.parts.values()):
        yield (
            f"the LoRA {path!r} is in PEFT's own format, whose adapter_config.json is not read: its scale counts as 1; "
            "if lora_alpha / r in that file is not 1, multiply network_multiplier by it"
        )
    yield from _base_notes(header.metadata, path, model)


def _alpha_notes(metadata: Mapping[str, str], path: str) -> Iterator[str]:
    for key in ALPHAS:
        if key in metadata:
            yield (
                f"the LoRA {path!r} has {key}: {_printable(metadata[key])} in its metadata and no alpha for its "
                "tensors: like diffusers, this service ignores that metadata, and the scale is 1; if it was trained "
                "with another scale, multiply network_multiplier by alpha / rank"
            )
            return


def _base_notes(metadata: Mapping[str, str], path: str, model: str) -> Iterator[str]:
    for key in BASES:
        base = metadata.get(key, "")
        words = set(re.split(r"[^a-z0-9]+", base[:MAX_TEXT].lower()))
        if not words & {"qwen", "qwenimage"}:
            continue
        trained_for = model_of_metadata(words) or model
        if trained_for != model:
            yield (
                f"the LoRA {path!r} was trained for another model of the family, {trained_for}: its metadata has "
                f"{key}: {_printable(base)}; it fits {model} too, but may do less or something else there"
            )
            return


def _printable(text: str) -> str:
    """The beginning of a value in printable ASCII, since its author is unknown."""
    return ascii(text[:MAX_TEXT])
