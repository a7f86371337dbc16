"""The tensors of an adapter file: one table for the key styles of all tools that write such files.

It uses only names and shapes and no torch, so that an ingress, which has a file's header, and an editor, which has its
tensors, run the same code. A key consists of a prefix, a module's name and a part; the parts of a module say which kind
of change it is. A new key style is a row in PREFIXES or PARTS.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal

Shape = tuple[int, ...]
Kind = Literal["lora", "lokr", "loha", "full"]

# Prefixes of a module's name, in the order in which they are removed. DiffSynth writes `pipe.dit.`, PEFT
# `base_model.model.`, ComfyUI `model.diffusion_model.`, the trainer `diffusion_model.`, diffusers `transformer.`,
# kohya's scripts `lora_unet_` and LyCORIS `lycoris_`, with dots as underscores.
PEFT_PREFIX = "base_model.model."
PREFIXES = (
    "pipe.dit.",
    PEFT_PREFIX,
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "lora_unet_",
    "lycoris_",
)
# What torch.compile inserts into the name of a compiled module, at any place; with dots, or as underscores.
COMPILED = "_orig_mod."
COMPILED_BY_UNDERSCORES = COMPILED.replace(".", "_")

# Endings of a key, and the part of the change that each is. PEFT may put the adapter's name before the last word:
# `.lora_A.default.weight`.
PARTS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_B.bias": "bias",
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
    ".hada_w1_a": "hada_w1_a",
    ".hada_w1_b": "hada_w1_b",
    ".hada_w2_a": "hada_w2_a",
    ".hada_w2_b": "hada_w2_b",
    ".diff": "diff",
    ".diff_b": "diff_b",
}
# Names of PEFT's default adapter: its own, and diffusers'.
ADAPTER_NAMES = ("default", "default_0")

# The kind of change to a weight that a part belongs to.
KINDS: dict[str, Kind] = {
    **dict.fromkeys(("down", "up"), "lora"),
    **dict.fromkeys(("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b"), "lokr"),
    **dict.fromkeys(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), "loha"),
    "diff": "full",
}
# Parts whose first dimension is a rank. If a change has several, alpha is divided by the rank of the first one here.
INNER_PARTS = ("down", "hada_w1_b", "hada_w2_b", "w2_b", "w1_b")
# Parts that change a bias, and the kind of adapter that writes them.
BIASES: dict[str, Kind] = {"bias": "lora", "diff_b": "full"}

DORA = "DoRA is not a difference that can be added to the weights: it scales the sum anew"
OFT = "OFT is not a difference that can be added to the weights: it multiplies them"
TUCKER = "a Tucker core is for convolutions, and the model has none"
# Parts that cannot be applied, each with the reason.
REFUSED = {
    ".dora_scale": DORA,
    ".magnitude": DORA,
    ".lora_magnitude_vector": DORA,
    ".lora_magnitude_vector.weight": DORA,
    ".hada_t1": TUCKER,
    ".hada_t2": TUCKER,
    ".lokr_t2": TUCKER,
    ".lora_mid.weight": TUCKER,
    ".oft_blocks": OFT,
    ".oft_diag": OFT,
    ".oft_R.weight": OFT,
}
# The most words that the end of a key has.
MAX_WORDS = 3

# Not a change to the transformer: an embedding that some trainers store with the LoRA.
IGNORED = ("emb_params",)


@dataclass(frozen=True)
class Module:
    """One module that a file changes: the name of the tensor behind each part.

    `kind` is that of the change to its weight; None if only its bias is changed. `rank` is the inner dimension of a
    change of low rank, by which alpha is divided; None for whole matrices.
    """

    name: str
    kind: Kind | None
    rank: int | None
    parts: Mapping[str, str]

    @property
    def kinds(self) -> set[Kind]:
        """The kinds of all of its parts."""
        return {kind for part in self.parts if (kind := KINDS.get(part) or BIASES.get(part))}


@dataclass
class Layout:
    """A whole file. `faults` are the keys that cannot be applied, each with its reason; without any, the file fits."""

    modules: dict[str, Module] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)


def read_layout(tensors: Mapping[str, Shape], parameters: Mapping[str, Shape]) -> Layout:
    """The changes that a file's tensors make to a model's parameters, both given as shapes by name."""
    layout = Layout()
    modules = {name.removesuffix(".weight") for name in parameters if name.endswith(".weight")}
    by_underscores = {name.replace(".", "_"): name for name in modules}
    parts: dict[str, dict[str, str]] = {}
    for key in tensors:
        written, ending = split_key(key)
        if key in IGNORED:
            layout.ignored.append(key)
        elif ending in REFUSED:
            layout.faults[key] = REFUSED[ending]
        elif ending not in PARTS:
            layout.faults[key] = "no known part of an adapter"
        else:
            name = written if written in modules else by_underscores.get(written)
            if name is None:
                layout.faults[key] = "the model has no such module"
            elif (other := parts.setdefault(name, {}).setdefault(PARTS[ending], key)) != key:
                layout.faults[key] = f"repeats {other}"
    for name, found in parts.items():
        shapes = {part: tensors[key] for part, key in found.items()}
        if fault := _fault(shapes, parameters[f"{name}.weight"], parameters.get(f"{name}.bias")):
            layout.faults |= dict.fromkeys(found.values(), fault)
        else:
            kind = next((KINDS[part] for part in found if part in KINDS), None)
            layout.modules[name] = Module(name, kind, _rank(shapes), found)
    return layout


def split_key(key: str) -> tuple[str, str]:
    """The name of a key's module without its prefix, and the key's ending as PARTS has it; "" if it is unknown."""
    words = key.split(".")
    # `.lora_A.default.weight` means `.lora_A.weight`, but `to_q.default.weight` has no meaning.
    if len(words) > MAX_WORDS and words[-2] in ADAPTER_NAMES and words[-3].startswith("lora_"):
        del words[-2]
    for count in range(min(MAX_WORDS, len(words) - 1), 0, -1):
        ending = "." + ".".join(words[-count:])
        if ending in PARTS or ending in REFUSED:
            return _without_prefix(".".join(words[:-count])), ending
    return key, ""


def _without_prefix(name: str) -> str:
    name = name.replace(COMPILED, "")
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name.replace(COMPILED_BY_UNDERSCORES, "")


def _rank(shapes: Mapping[str, Shape]) -> int | None:
    """The rank by which a change's alpha is divided; for a LoKr the right side's rank if it has one, as in LyCORIS."""
    inner = next((part for part in INNER_PARTS if part in shapes), None)
    return None if inner is None else shapes[inner][0]


def _fault(shapes: Mapping[str, Shape], weight: Shape, bias: Shape | None) -> str | None:
    """Why these parts cannot change a module whose weight and bias have these shapes; None if they can."""
    kinds = {KINDS[part] for part in shapes if part in KINDS}
    biases = [part for part in shapes if part in BIASES]
    if not kinds and not biases:
        return "only an alpha"
    if len(kinds) > 1:
        return f"of several kinds at once: {', '.join(sorted(kinds))}"
    if prod(shapes.get("alpha", ())) != 1:
        return f"its alpha has the shape {list(shapes['alpha'])}: it is not one number"
    fault = _weight_fault(next(iter(kinds)), shapes, weight) if kinds else None
    return fault or (_bias_fault(shapes, biases, bias) if biases else None)


def _weight_fault(kind: Kind, shapes: Mapping[str, Shape], weight: Shape) -> str | None:
    product = {"lora": _lora_shape, "lokr": _lokr_shape, "loha": _loha_shape, "full": _full_shape}[kind](shapes)
    if product is None:
        return f"incomplete: only {', '.join(sorted(shapes))}"
    if product != weight:
        return f"its change is {_dimensions(product)}, the model's module {_dimensions(weight)}"
    return "of rank 0: it changes nothing" if 0 in (size for shape in shapes.values() for size in shape) else None


def _bias_fault(shapes: Mapping[str, Shape], biases: list[str], bias: Shape | None) -> str | None:
    if len(biases) > 1:
        return f"two changes of one bias: {', '.join(sorted(biases))}"
    [part] = biases
    if part == "bias" and "up" not in shapes:
        return f"incomplete: only {', '.join(sorted(shapes))}"
    if bias is None:
        return "changes a bias, and the model's module has none"
    if shapes[part] != bias:
        return f"the change of its bias is {_dimensions(shapes[part])}, the model's bias {_dimensions(bias)}"
    return None


def _lora_shape(shapes: Mapping[str, Shape]) -> Shape | None:
    """(out, rank) times (rank, in)."""
    if "up" not in shapes or "down" not in shapes:
        return None
    return _product(shapes["up"], shapes["down"])


def _lokr_shape(shapes: Mapping[str, Shape]) -> Shape | None:
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


def _loha_shape(shapes: Mapping[str, Shape]) -> Shape | None:
    """The elementwise product of two matrices of one shape, each a product of two."""
    sides = [[shapes.get(f"hada_{side}_{half}") for half in "ab"] for side in ("w1", "w2")]
    products = [_product(left, right) for left, right in sides if left is not None and right is not None]
    if len(products) < 2:
        return None
    return products[0] if products[0] == products[1] else ()


def _full_shape(shapes: Mapping[str, Shape]) -> Shape | None:
    return shapes["diff"]


def _product(left: Shape, right: Shape) -> Shape:
    """The shape of a matrix product; () if the shapes do not fit."""
    return (left[0], right[1]) if len(left) == len(right) == 2 and left[1] == right[0] else ()


def _dimensions(shape: Shape) -> str:
    return "x".join(map(str, shape)) if shape else "not a matrix"
