"""The factor of each low-rank change: alpha / rank, or alpha / sqrt(rank) for rslora.

An `.alpha` tensor gives the factor of its module. Without one, the metadata `lora_adapter_metadata` does: diffusers,
and the trainers that save through it, write PEFT's LoraConfig there as JSON, and it is read as diffusers' loader and
PEFT read it, defaults included. A file with neither has the factor 1. Ingress and editor call the same function.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import median
from typing import Any, NamedTuple

from serve_app.adapters.formats import Layout, Module
from serve_app.adapters.header import Header
from serve_app.errors import LoraIncompatible, LoraInvalidFile
from serve_app.tasks import Factor

METADATA = "lora_adapter_metadata"
NONE, TENSORS = "none", "alpha tensors"

# The prefix of the metadata's keys about the transformer.
COMPONENT = "transformer."
# The defaults of r and lora_alpha in PEFT's LoraConfig (0.21).
DEFAULT_RANK, DEFAULT_ALPHA = 8, 8.0
# PEFT's options beyond plain LoRA. With any of these set, the tensors alone do not give the change.
OTHER_METHODS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
# Initialisations that change the model's weights, so that the file is a difference to those.
OTHER_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Characters of a file's value that an error repeats.
MAX_SHOWN = 100


class ModuleFactor(NamedTuple):
    """`value` is None if it is in an alpha tensor that has not been read."""

    value: float | None
    source: str


class Patterns:
    """Values for some modules, by a module's whole name after a ^, or by the last words of its name.

    If several names match, the first one in the file counts, as in PEFT.
    """

    def __init__(self, values: Iterable[tuple[str, float]] = ()) -> None:
        self._found: dict[str, tuple[int, float]] = {}
        for place, (name, value) in enumerate(values):
            self._found.setdefault(name, (place, value))

    def get(self, module: str, default: float) -> float:
        if not self._found:
            return default
        words = module.split(".")
        names = (f"^{module}", *(".".join(words[start:]) for start in range(len(words))))
        fitting = [self._found[name] for name in names if name in self._found]
        return min(fitting)[1] if fitting else default


@dataclass(frozen=True)
class Declared:
    """The scale in a file's metadata: for all modules, with exceptions for some."""

    rank: float
    alpha: float
    rslora: bool
    ranks: Patterns
    alphas: Patterns

    def rank_of(self, module: str) -> float:
        return self.ranks.get(module, self.rank)

    def factor_of(self, module: str) -> float:
        rank = self.rank_of(module)
        return self.alphas.get(module, self.alpha) / (sqrt(rank) if self.rslora else rank)


def read_factors(layout: Layout, header: Header, path: str) -> dict[str, ModuleFactor]:
    """The factor of each module that a file changes.

    Raises LoraInvalidFile for an alpha that is not a number or metadata that cannot be read, LoraIncompatible for
    metadata that contradicts the tensors or names a method that is not plain LoRA.
    """
    declared = read_declared(header.metadata, path)
    return {name: _factor(module, header, declared, path) for name, module in layout.modules.items()}


def summary(layout: Layout, factors: Mapping[str, ModuleFactor]) -> Factor:
    """The factors of a file's low-rank changes, or of all changes if it has no low-rank ones."""
    of_low_rank = [factors[name] for name, module in layout.modules.items() if module.rank is not None]
    found = of_low_rank or list(factors.values())
    source = "+".join(sorted({factor.source for factor in found}))
    values = [factor.value for factor in found if factor.value is not None]
    if len(values) < len(found):
        return Factor(source, None, None, None)
    return Factor(source, min(values), median(values), max(values))


def read_declared(metadata: Mapping[str, str], path: str) -> Declared | None:
    """The scale in the metadata; None if there is none. Raises LoraInvalidFile or LoraIncompatible."""
    _refuse_other_methods({"use_dora": metadata.get("use_dora", "").lower() == "true"}, path)
    if METADATA not in metadata:
        return None
    try:
        config = json.loads(metadata[METADATA])
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, "it is not JSON") from error
    if not isinstance(config, dict):
        raise _unreadable(path, "it is not a JSON object")
    of_transformer = {key.removeprefix(COMPONENT): config[key] for key in config if key.startswith(COMPONENT)}
    # A transformer's own `save_lora_adapter` writes the keys bare.
    config = of_transformer or {key: value for key, value in config.items() if "." not in key}
    _refuse_other_methods(config, path)
    return Declared(
        _rank(config.get("r", DEFAULT_RANK), path),
        _alpha(config.get("lora_alpha", DEFAULT_ALPHA), path),
        config.get("use_rslora") is True,
        Patterns((name, _rank(value, path)) for name, value in _patterns(config, "rank_pattern", path)),
        Patterns((name, _alpha(value, path)) for name, value in _patterns(config, "alpha_pattern", path)),
    )


def _factor(module: Module, header: Header, declared: Declared | None, path: str) -> ModuleFactor:
    if module.rank is None:
        # Whole matrices: their alpha is ignored, as in LyCORIS (files in fp16 hold inf there).
        return ModuleFactor(1.0, NONE)
    if "alpha" in module.parts:
        return _factor_of_alpha(module, module.rank, header, path)
    if declared is None:
        return ModuleFactor(1.0, NONE)
    if module.kind != "lora":
        raise LoraIncompatible(
            f"the LoRA {path!r} has the scale of a {module.kind} in its metadata {METADATA}, which is read only "
            "for LoRA; save it with alpha tensors",
            {"lora_path": path},
        )
    if declared.rank_of(module.name) != module.rank:
        raise LoraIncompatible(
            f"the LoRA {path!r} contradicts itself: its metadata {METADATA} gives {module.name} the rank "
            f"{declared.rank_of(module.name)}, its tensors have {module.rank}",
            {"lora_path": path},
        )
    return ModuleFactor(declared.factor_of(module.name), METADATA)


def _factor_of_alpha(module: Module, rank: int, header: Header, path: str) -> ModuleFactor:
    alpha = header.alphas.get(module.parts["alpha"])
    if alpha is not None and not isfinite(alpha):
        raise LoraInvalidFile(
            f"the LoRA file {path!r} has an alpha that is not a number: that of {module.name} is {alpha}",
            {"lora_path": path},
        )
    return ModuleFactor(None if alpha is None else alpha / rank, TENSORS)


def _refuse_other_methods(config: Mapping[str, Any], path: str) -> None:
    """Raise LoraIncompatible unless the metadata is of a plain LoRA."""
    for key in OTHER_METHODS:
        if config.get(key):
            name = "DoRA" if key == "use_dora" else key
            raise LoraIncompatible(
                f"the LoRA {path!r} is not a plain LoRA: its metadata says {key}, and {name} cannot be applied as a "
                "difference to the weights",
                {"lora_path": path},
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(OTHER_WEIGHTS):
        raise LoraIncompatible(
            f"the LoRA {path!r} is a difference to other weights than the model's: its metadata {METADATA} says "
            f"init_lora_weights: {start[:MAX_SHOWN]!r}; convert it to a plain LoRA",
            {"lora_path": path},
        )


def _patterns(config: Mapping[str, Any], key: str, path: str) -> list[tuple[str, Any]]:
    """The names of modules, or their ends, in a pattern of the metadata, each with its value.

    Raises LoraInvalidFile or LoraIncompatible.
    """
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise _unreadable(path, f"its {key} is not a JSON object")
    # PEFT takes each as a regular expression for the end of a name. Expressions from unknown authors are not run here:
    # one can take hours. Trainers write names.
    names = [(pattern.removesuffix("$").replace("\\.", "."), value) for pattern, value in found.items()]
    for name, _ in names:
        if not name.removeprefix("^").replace(".", "").replace("_", "").isalnum():
            raise LoraIncompatible(
                f"the LoRA {path!r} has a regular expression in the {key} of its metadata {METADATA}; names of modules "
                f"or their ends are read: {name[:MAX_SHOWN]!r}",
                {"lora_path": path},
            )
    return names


def _rank(value: object, path: str) -> int:
    if type(value) is not int or not 0 < value < 2**31:
        raise _unreadable(path, "a rank in it is not a positive whole number")
    return value


def _alpha(value: object, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        raise _unreadable(path, "an alpha in it is not a number")
    return float(value)


def _unreadable(path: str, reason: str) -> LoraInvalidFile:
    message = f"the LoRA file {path!r} has metadata {METADATA} that cannot be read, and it says the scale: {reason}"
    return LoraInvalidFile(message, {"lora_path": path})
