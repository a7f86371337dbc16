"""What the tensors of an adapter file mean: one table for every way in which people's files are written.

Names alone, no torch: an ingress understands a file from its header, an editor its tensors, by the same code.
A key is a prefix, a module's name and a part; a module's parts say which kind of change it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Shape = tuple[int, ...]
Kind = Literal["lora", "lokr", "full"]

# What may stand before a module's name. The trainer writes `diffusion_model.`, diffusers `transformer.`, PEFT
# `base_model.model.`, kohya's scripts `lora_unet_` and LyCORIS `lycoris_`, with dots as underscores.
PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.", "lora_unet_", "lycoris_")

# What may stand behind it, and the part of the change that it is.
PARTS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".alpha": "alpha",
    ".lokr_w1": "w1",
    ".lokr_w1_a": "w1_a",
    ".lokr_w1_b": "w1_b",
    ".lokr_w2": "w2",
    ".lokr_w2_a": "w2_a",
    ".lokr_w2_b": "w2_b",
    ".diff": "diff",
    ".diff_b": "diff_b",
}
KINDS: dict[str, Kind] = {
    **dict.fromkeys(("down", "up"), "lora"),
    **dict.fromkeys(("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b"), "lokr"),
    **dict.fromkeys(("diff", "diff_b"), "full"),
}

# Parts of kinds that cannot be applied exactly as a difference to the weights, and the kind's name.
REFUSED = {
    ".dora_scale": "DoRA",
    ".magnitude": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".lora_magnitude_vector.weight": "DoRA",
    ".lora_magnitude_vector.default.weight": "DoRA",
    ".hada_w1_a": "LoHa",
    ".hada_w1_b": "LoHa",
    ".hada_w2_a": "LoHa",
    ".hada_w2_b": "LoHa",
    ".hada_t1": "LoHa",
    ".hada_t2": "LoHa",
    ".lokr_t2": "LoKr of a convolution",
    ".oft_blocks": "OFT",
    ".oft_diag": "OFT",
    ".oft_R.weight": "OFT",
}

# Not a change to the transformer: an embedding that some trainers keep beside the LoRA.
IGNORED = ("emb_params",)


@dataclass(frozen=True)
class Module:
    """One linear that a file changes: the name of the tensor behind each part."""

    name: str
    kind: Kind
    parts: Mapping[str, str]


@dataclass
class Layout:
    """A whole file. `faults` are keys that cannot be applied, each with its reason; none means that all fits."""

    modules: dict[str, Module] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)


def read_layout(tensors: Mapping[str, Shape], linears: Mapping[str, Shape]) -> Layout:
    """What a file with these tensors changes in a model whose linears are (out, in) by name."""
    layout = Layout()
    by_underscores = {name.replace(".", "_"): name for name in linears}
    parts: dict[str, dict[str, str]] = {}
    for key in tensors:
        if key in IGNORED:
            layout.ignored.append(key)
        elif kind := next((kind for ending, kind in REFUSED.items() if key.endswith(ending)), None):
            layout.faults[key] = f"{kind} is not a difference that can be added to the weights"
        elif (ending := next((ending for ending in PARTS if key.endswith(ending)), None)) is None:
            layout.faults[key] = "no known part of an adapter"
        else:
            written = _without_prefix(key.removesuffix(ending))
            name = written if written in linears else by_underscores.get(written)
            if name is None:
                layout.faults[key] = "the model has no such module"
            elif (other := parts.setdefault(name, {}).setdefault(PARTS[ending], key)) != key:
                layout.faults[key] = f"says again what {other} says"
    for name, found in parts.items():
        if fault := _fault(found, {part: tensors[key] for part, key in found.items()}, linears[name]):
            layout.faults |= dict.fromkeys(found.values(), fault)
        else:
            kind = next(KINDS[part] for part in found if part != "alpha")
            layout.modules[name] = Module(name, kind, found)
    return layout


def _without_prefix(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _fault(parts: Mapping[str, str], shapes: Mapping[str, Shape], linear: Shape) -> str | None:
    """Why these parts are no change to a linear of this shape, or None."""
    kinds = {KINDS[part] for part in parts if part != "alpha"}
    if not kinds:
        return "an alpha alone"
    if len(kinds) > 1:
        return f"of several kinds at once: {', '.join(sorted(kinds))}"
    [kind] = kinds
    product = {"lora": _lora_shape, "lokr": _lokr_shape, "full": _full_shape}[kind](shapes, linear)
    if product is None:
        return f"incomplete: {', '.join(sorted(parts))} alone"
    if product != linear:
        return f"its change is {_by(product)}, the model's module {_by(linear)}"
    return None


def _lora_shape(shapes: Mapping[str, Shape], linear: Shape) -> Shape | None:
    """(out, rank) times (rank, in)."""
    if "up" not in shapes or "down" not in shapes:
        return None
    return _product(shapes["up"], shapes["down"])


def _lokr_shape(shapes: Mapping[str, Shape], linear: Shape) -> Shape | None:
    """The Kronecker product of two matrices, each whole or a product of two."""
    factors = []
    for whole in ("w1", "w2"):
        low_rank = (f"{whole}_a" in shapes, f"{whole}_b" in shapes)
        if whole in shapes and not any(low_rank):
            factors.append(shapes[whole])
        elif whole not in shapes and all(low_rank):
            factors.append(_product(shapes[f"{whole}_a"], shapes[f"{whole}_b"]))
        else:
            return None
    if any(len(factor) != 2 for factor in factors):
        return ()
    return factors[0][0] * factors[1][0], factors[0][1] * factors[1][1]


def _full_shape(shapes: Mapping[str, Shape], linear: Shape) -> Shape | None:
    """A whole weight, a whole bias, or both."""
    if shapes.get("diff_b", linear[:1]) != linear[:1]:
        return shapes["diff_b"]
    return shapes.get("diff", linear)


def _product(left: Shape, right: Shape) -> Shape:
    """The shape of a matrix product; () where there is none."""
    return (left[0], right[1]) if len(left) == len(right) == 2 and left[1] == right[0] else ()


def _by(shape: Shape) -> str:
    return "x".join(map(str, shape)) if shape else "no matrix"
