"""What a file is, from its header alone: the receipt that comes back with every result."""

import json
import re
from collections.abc import Mapping
from typing import Any

from serve_app.adapters.formats import Layout, Shape, read_layout
from serve_app.adapters.header import FLOAT_BYTES, Header
from serve_app.errors import LoraIncompatible
from serve_app.tasks import MAX_TRIGGER_CHARS, Receipt

# Offending keys that an error names, and how much of each.
NAMED_KEYS, NAMED_CHARACTERS = 5, 200
# ostris/ai-toolkit writes {"1_<trigger word>": {...}}, kohya's scripts {"<repeats>_<folder>": {...}}.
TAG = re.compile(r"^\d+_(.+)$")


def understand(header: Header, size_bytes: int, path: str, model: str, linears: Mapping[str, Shape]) -> Receipt:
    """The receipt of a file for a model with these linears. Raises LoraIncompatible unless all of it fits."""
    layout = read_layout(header.tensors, linears)
    refuse_unfit(layout, path, model)
    refuse_integers(header, layout, path, model)
    return make_receipt(header, layout, size_bytes)


def make_receipt(header: Header, layout: Layout, size_bytes: int) -> Receipt:
    """The receipt of a file that holds no faults."""
    kinds = sorted({module.kind for module in layout.modules.values()})
    software = _json(header.metadata, "software")
    return Receipt(
        kind="+".join(kinds),
        ranks=_ranks(header, layout),
        dtype="+".join(sorted({header.dtypes[key] for key in header.tensors if not key.endswith(".alpha")})),
        size_bytes=size_bytes,
        modules=len(layout.modules),
        top_level=tuple(sorted(name for name in layout.modules if not name.startswith("transformer_blocks."))),
        ignored=tuple(sorted(layout.ignored)),
        trigger_word=_trigger_word(header),
        trainer=_text(software.get("name")),
        trainer_version=_text(software.get("version")),
        step=step if isinstance(step := _json(header.metadata, "training_info").get("step"), int) else None,
    )


def refuse_unfit(layout: Layout, path: str, model: str) -> None:
    """Raise LoraIncompatible unless every tensor of the file has its place: what fits in part is never served."""
    if not layout.faults and layout.modules:
        return
    named = {printable(key): printable(why) for key, why in list(layout.faults.items())[:NAMED_KEYS]}
    details = {
        "lora_path": path,
        "modules_that_fit": len(layout.modules),
        "keys_that_do_not": len(layout.faults),
        "first_of_them": named,
    }
    if not layout.faults:
        raise LoraIncompatible(f"the LoRA {path!r} changes nothing: it has no tensor for the model {model}", details)
    key, reason = next(iter(named.items()))
    raise LoraIncompatible(
        f"the LoRA {path!r} does not fit the model {model}: {len(layout.faults)} of its tensors cannot be applied, "
        f"{len(layout.modules)} modules fit; the first is {key!r}: {reason}",
        details,
    )


def refuse_integers(header: Header, layout: Layout, path: str, model: str) -> None:
    """Raise LoraIncompatible if a tensor to be applied does not hold floating-point numbers."""
    keys = [key for module in layout.modules.values() for key in module.parts.values()]
    if odd := sorted({header.dtypes[key] for key in keys} - FLOAT_BYTES.keys()):
        raise LoraIncompatible(f"the LoRA {path!r} holds {', '.join(odd)}, no differences to weights of {model}")


def printable(text: str) -> str:
    """`text` as it may stand in an error: not long, and nothing that JSON cannot carry."""
    return text[:NAMED_CHARACTERS].encode("utf-8", "backslashreplace").decode()


def _ranks(header: Header, layout: Layout) -> tuple[int, ...]:
    """Every rank that occurs, ascending; whole matrices have none."""
    inner = ("down", "w1_b", "w2_b")
    shapes: list[Shape] = [
        header.tensors[key] for module in layout.modules.values() for part, key in module.parts.items() if part in inner
    ]
    return tuple(sorted({shape[0] for shape in shapes}))


def _trigger_word(header: Header) -> str | None:
    tags = (TAG.match(tag) for tag in _json(header.metadata, "ss_tag_frequency"))
    return next((word for tag in tags if tag and (word := _text(tag[1]))), None)


def _json(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """A JSON object that the trainer wrote as a string; {} where it did not."""
    try:
        value = json.loads(metadata[key])
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    """What a file says of itself, if it is a short word that can be printed: anybody may have written it."""
    return value if isinstance(value, str) and len(value) <= MAX_TRIGGER_CHARS and value.isprintable() else None
