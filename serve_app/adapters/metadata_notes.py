"""Notes about metadata of an adapter's file that the service does not use."""

import re
from collections.abc import Iterator, Mapping

from serve_app.adapters.factors import NONE, ModuleFactor
from serve_app.adapters.formats import Layout
from serve_app.adapters.header import Header

# Metadata in which a file may say its alpha. diffusers' loader for these models reads none of it, and files whose
# tensors have the scale already in them keep it too (musubi-tuner).
ALPHAS = ("ss_network_alpha", "network_alpha", "lora_alpha", "alpha")
# Metadata that names the model a file was trained for: kohya's scripts and the trainer, and the model specification.
BASES = ("ss_base_model_version", "modelspec.architecture")
# What PEFT writes before a module's name. It keeps the scale in a file of its own.
PEFT = "base_model.model."
# Longest value of the metadata that a sentence repeats.
MAX_TEXT = 100

# Words in a base model's name, and the model that has them all. The first that fits counts; `qwen_image` alone is
# what the trainer writes for each model of the family.
FAMILY = (
    (("edit", "2511"), "qwen_image_edit_plus_2511"),
    (("edit", "2509"), "qwen_image_edit_plus"),
    (("edit", "plus"), "qwen_image_edit_plus"),
    (("edit",), "qwen_image_edit"),
    (("2512",), "qwen_image_2512"),
)


def notes_of(
    header: Header, layout: Layout, factors: Mapping[str, ModuleFactor], path: str, model: str
) -> Iterator[str]:
    """The notes about one file that is used with `model`."""
    plain = [
        module for name, module in layout.modules.items() if module.rank is not None and factors[name].source == NONE
    ]
    if plain:
        yield from _alpha_notes(header.metadata, path)
    if any(key.startswith(PEFT) for module in plain for key in module.parts.values()):
        yield (
            f"the LoRA {path!r} is in PEFT's own format, whose adapter_config.json is not read: its scale counts as 1; "
            "if lora_alpha / r there is something else, multiply network_multiplier by it"
        )
    yield from _base_notes(header.metadata, path, model)


def _alpha_notes(metadata: Mapping[str, str], path: str) -> Iterator[str]:
    for key in ALPHAS:
        if key in metadata:
            yield (
                f"the LoRA {path!r} has {key}: {_shown(metadata[key])} in its metadata and no alpha for its tensors: "
                "as in diffusers the metadata is not obeyed and its scale counts as 1; if it was trained with another "
                "one, multiply network_multiplier by alpha / rank"
            )
            return


def _base_notes(metadata: Mapping[str, str], path: str, model: str) -> Iterator[str]:
    for key in BASES:
        base = metadata.get(key, "")
        words = set(re.split(r"[^a-z0-9]+", base[:MAX_TEXT].lower()))
        if not words & {"qwen", "qwenimage"}:
            continue
        trained_for = next((other for needed, other in FAMILY if words.issuperset(needed)), model)
        if trained_for != model:
            yield (
                f"the LoRA {path!r} was trained for another model of the family, {trained_for}: its metadata has "
                f"{key}: {_shown(base)}; it fits {model} too, but may do less or something else there"
            )
            return


def _shown(text: str) -> str:
    """The beginning of a value, printable: anybody may have written it."""
    return ascii(text[:MAX_TEXT])
