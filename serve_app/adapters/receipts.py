"""Receipts: the facts about an adapter file from its header, which come back with every result."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from serve_app.adapters.factors import ModuleFactor, read_factors, summary
from serve_app.adapters.formats import INNER_PARTS, Layout, read_layout
from serve_app.adapters.header import ALPHA, FLOAT_BITS, INTEGER_BITS, MAX_NUMBER, Header
from serve_app.adapters.metadata_notes import notes_of
from serve_app.errors import LoraIncompatible
from serve_app.models.architecture import PUBLISHED, Architecture
from serve_app.models.registry import MODELS
from serve_app.schemas.text import escaped
from serve_app.tasks import MAX_TRIGGER_CHARS, Receipt

# Offending keys that an error names, and how much of each.
NAMED_KEYS, NAMED_CHARACTERS = 5, 200
# ostris/ai-toolkit writes {"1_<trigger word>": {...}}, kohya's scripts {"<repeats>_<folder>": {...}}.
TAG = re.compile(r"^\d+_(.+)$")


def read_receipt(header: Header, size_bytes: int, path: str, model: str, architecture: Architecture) -> Receipt:
    """The receipt of a file for a model of this architecture.

    Raises LoraIncompatible unless every tensor fits, and LoraInvalidFile if an alpha is not a number or the metadata is
    invalid.
    """
    layout = read_layout(header.tensors, architecture.parameters)
    refuse_unfit(layout, header, path, model, architecture)
    factors = read_factors(layout, header, path)
    return make_receipt(header, layout, factors, size_bytes, notes_of(header, layout, factors, path, model))


def make_receipt(
    header: Header, layout: Layout, factors: Mapping[str, ModuleFactor], size_bytes: int, notes: Iterable[str]
) -> Receipt:
    """The receipt of a file without faults."""
    modules = layout.modules.values()
    software = _json(header.metadata, "software")
    return Receipt(
        kind="+".join(sorted({kind for module in modules for kind in module.kinds})),
        ranks=_ranks(header, layout),
        dtype="+".join(sorted({header.dtypes[key] for key in header.tensors if not key.endswith(ALPHA)})),
        size_bytes=size_bytes,
        modules=len(layout.modules),
        top_level=tuple(sorted(name for name in layout.modules if not name.startswith("transformer_blocks."))),
        ignored=tuple(sorted(layout.ignored)),
        trigger_word=_trigger_word(header),
        trainer=_text(software.get("name")),
        trainer_version=_text(software.get("version")),
        step=_step(header),
        factor=summary(layout, factors),
        notes=tuple(notes),
    )


def refuse_unfit(layout: Layout, header: Header, path: str, model: str, architecture: Architecture) -> None:
    """Raise LoraIncompatible unless every tensor of the file fits the model. A partly fitting file is never served."""
    details: dict[str, Any] = {"lora_path": path, "modules_that_fit": len(layout.modules)}
    faults = layout.faults or _dtype_faults(layout, header)
    if not faults and not layout.modules:
        raise LoraIncompatible(f"the LoRA {path!r} changes nothing: it has no tensor for the model {model}", details)
    if not faults:
        return
    named = {
        escaped(key, NAMED_CHARACTERS): escaped(why, NAMED_CHARACTERS) for key, why in list(faults.items())[:NAMED_KEYS]
    }
    details |= {"keys_that_do_not": len(faults), "first_of_them": named}
    key, reason = next(iter(named.items()))
    if architecture != PUBLISHED and not read_layout(header.tensors, PUBLISHED.parameters).faults:
        raise LoraIncompatible(
            f"the LoRA {path!r} is made for the published {MODELS[model].base_model}, and this service runs a "
            f"miniature of the model {model}: set `checkpoint` to {MODELS[model].base_model} in its `models` to use it "
            f"(here the first of {len(faults)} tensors that do not fit is {key!r}: {reason})",
            details,
        )
    raise LoraIncompatible(
        f"the LoRA {path!r} does not fit the model {model}: {len(faults)} of its tensors cannot be applied, "
        f"{len(layout.modules)} modules fit; the first is {key!r}: {reason}",
        details,
    )


def _dtype_faults(layout: Layout, header: Header) -> dict[str, str]:
    """Tensors whose dtype cannot be applied, each with the reason. An alpha may be an integer."""
    faults = {}
    for module in layout.modules.values():
        for part, key in module.parts.items():
            allowed = FLOAT_BITS | INTEGER_BITS if part == "alpha" else FLOAT_BITS
            if header.dtypes[key] not in allowed:
                faults[key] = f"its dtype {header.dtypes[key]} cannot be applied; save it as BF16, F16 or F32"
    return faults


def _ranks(header: Header, layout: Layout) -> tuple[int, ...]:
    """All ranks in the file, ascending; whole matrices have none."""
    parts = (part for module in layout.modules.values() for part in module.parts.items())
    return tuple(sorted({header.tensors[key][0] for part, key in parts if part in INNER_PARTS}))


def _step(header: Header) -> int | None:
    step = _json(header.metadata, "training_info").get("step")
    return step if type(step) is int and 0 <= step <= MAX_NUMBER else None


def _trigger_word(header: Header) -> str | None:
    tags = (TAG.match(tag) for tag in _json(header.metadata, "ss_tag_frequency"))
    return next((word for tag in tags if tag and (word := _text(tag[1]))), None)


def _json(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """A JSON object that the trainer wrote as a string; {} if there is none."""
    try:
        value = json.loads(metadata[key])
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    """`value` if it is short printable text, otherwise None: the author of the file is unknown."""
    return value if isinstance(value, str) and len(value) <= MAX_TRIGGER_CHARS and value.isprintable() else None
