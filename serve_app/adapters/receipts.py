"""What a file is, from its header alone: the receipt that comes back with every result."""

import json
import re
from collections.abc import Mapping
from typing import Any

from serve_app.adapters.formats import Layout, Shape
from serve_app.adapters.header import Header
from serve_app.errors import LoraIncompatible
from serve_app.tasks import Receipt

# Offending keys that an error names.
NAMED_KEYS = 5
# ostris/ai-toolkit writes {"1_<trigger word>": {...}}, kohya's scripts {"<repeats>_<folder>": {...}}.
TAG = re.compile(r"^\d+_(.+)$")


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
    named = dict(list(layout.faults.items())[:NAMED_KEYS])
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


def _ranks(header: Header, layout: Layout) -> tuple[int, ...]:
    """Every rank that occurs, ascending; whole matrices have none."""
    inner = ("down", "w1_b", "w2_b")
    shapes: list[Shape] = [
        header.tensors[key] for module in layout.modules.values() for part, key in module.parts.items() if part in inner
    ]
    return tuple(sorted({shape[0] for shape in shapes}))


def _trigger_word(header: Header) -> str | None:
    tags = (TAG.match(tag) for tag in _json(header.metadata, "ss_tag_frequency"))
    return next((tag[1] for tag in tags if tag), None)


def _json(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """A JSON object that the trainer wrote as a string; {} where it did not."""
    try:
        value = json.loads(metadata[key])
    except (KeyError, ValueError, TypeError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
