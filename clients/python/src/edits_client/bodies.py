"""The body of a request, from what a caller says. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union

from typing_extensions import TypedDict

from edits_client.models import ModelInfo

Quality = Literal["exact", "balanced", "fast", "turbo"]
Priority = Literal["interactive", "bulk"]
Size = Union[Literal["input"], str, "tuple[int, int]"]


@dataclass(frozen=True)
class Lora:
    """A LoRA: a path under the service's LoRA root or an http(s) URL, and how strongly it is applied (-2 to 2)."""

    path: str
    multiplier: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Lora:
        """`path` or `path:multiplier`, as on a command line. Raises ValueError for a multiplier out of range."""
        path, _, last = text.rpartition(":")
        multiplier = _number(last)
        if not path or multiplier is None:
            return cls(text)
        return cls(path, multiplier).checked()

    def checked(self) -> Lora:
        """Itself. Raises ValueError for a multiplier that the service refuses."""
        if not -2.0 <= self.multiplier <= 2.0:
            raise ValueError(f"the multiplier of {self.path} is {self.multiplier:g}; it must be from -2 to 2")
        return self

    def as_json(self) -> dict[str, Any]:
        return {"path": self.path, "network_multiplier": self.multiplier}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


class Options(TypedDict, total=False):
    """Everything about an edit but its images and texts. What is left out is up to the preset or the service.

    `size` is "input" (the aspect of the first control image at about 1 MP), "WxH", or (width, height) in pixels.
    `seeds` makes one image per prompt and seed; -1 lets the service draw one. `seed` is a single one. `extra` and
    `prompt_extra` are further fields of the body and of each prompt, for fields that this version does not know.
    """

    model: str | None
    preset: str | None
    loras: Sequence[Lora | str] | None
    size: Size | None
    steps: int | None
    guidance: float | None
    negative_prompt: str | None
    seed: int | None
    seeds: Sequence[int]
    sampler: str | None
    trigger_word: str | None
    profile: str | None
    quality: Quality | None
    max_loss: Mapping[str, float] | None
    output_format: str | None
    priority: Priority | None
    exif: Literal["ignore", "apply"] | None
    vae_tiling: bool | None
    deadline_s: float | None
    webhook_url: str | None
    webhook_events: Sequence[str] | None
    hf_token: str | None
    extra: Mapping[str, Any]
    prompt_extra: Mapping[str, Any]


MAX_IMAGES = 3
# Fields of the body that are options of the same name.
TOP_FIELDS = (
    "model",
    "preset",
    "trigger_word",
    "profile",
    "quality",
    "max_loss",
    "output_format",
    "priority",
    "exif",
    "vae_tiling",
    "deadline_s",
    "webhook_url",
    "webhook_events",
    "hf_token",
)


def request_body(images: Sequence[str], prompts: Sequence[str], options: Options) -> dict[str, Any]:
    """The JSON body of `POST /v1/inference`. `images` are control images as the service names them, for every prompt.

    Raises ValueError if there is no prompt or more than three images.
    """
    if not prompts:
        raise ValueError("there is no prompt")
    if len(images) > MAX_IMAGES:
        raise ValueError(f"{len(images)} control images were given; a prompt takes at most {MAX_IMAGES}")
    top = {name: options.get(name) for name in TOP_FIELDS} | {"loras": _loras(options)}
    items = [_prompt(images, prompt, seed, options) for prompt in prompts for seed in _seeds(options)]
    return {**_set(top), **options.get("extra", {}), "prompts": items}


def _seeds(options: Options) -> Sequence[int | None]:
    """One entry per image of a prompt, None for the service's default. Raises ValueError for both options."""
    seed, seeds = options.get("seed"), options.get("seeds")
    if seed is not None and seeds:
        raise ValueError("seed and seeds were given; give one of them")
    return seeds or (seed,)


def _loras(options: Options) -> list[dict[str, Any]] | None:
    """The list to send. Without a preset the service wants one, if only an empty one."""
    given = options.get("loras")
    if given is None:
        return None if options.get("preset") else []
    loras = (Lora.parse(lora) if isinstance(lora, str) else lora for lora in given)
    return [lora.checked().as_json() for lora in loras]


def _prompt(images: Sequence[str], prompt: str, seed: int | None, options: Options) -> dict[str, Any]:
    item = {
        "prompt": prompt,
        "neg": options.get("negative_prompt"),
        "sample_steps": options.get("steps"),
        "guidance_scale": options.get("guidance"),
        "sampler": options.get("sampler"),
        "seed": seed,
        "size": size_text(options.get("size")),
    }
    control = {f"ctrl_img_{number}": image for number, image in enumerate(images, start=1)}
    return {**_set(item), **control, **options.get("prompt_extra", {})}


def size_text(size: Size | None) -> str | None:
    """The `size` of a prompt: "input" or "WxH"."""
    if size is None or isinstance(size, str):
        return size
    width, height = size
    return f"{width}x{height}"


def _set(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def new_idempotency_key() -> str:
    return uuid.uuid4().hex


def as_prompts(prompt: str | Iterable[str]) -> list[str]:
    """One prompt or several, as a list."""
    return [prompt] if isinstance(prompt, str) else list(prompt)


def only_model(served: Sequence[ModelInfo], *, has_images: bool) -> str:
    """The id of the only model for such a request. Raises ValueError if there are several, or none."""
    fitting = [model.id for model in served if model.requires_control_image == has_images]
    if len(fitting) == 1:
        return fitting[0]
    kind = "that edit an image" if has_images else "that need no image"
    found = f"{len(fitting)} models {kind}: {', '.join(fitting)}" if fitting else f"no model {kind}"
    raise ValueError(f"the service has {found}; name one with model= or use a preset=")
