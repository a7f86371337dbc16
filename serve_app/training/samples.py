"""The samples of a training job: what `sample` in its config means for each image, by the trainer's rules."""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from serve_app.schemas.text import is_text
from serve_app.training.prompt_flags import split_flags, with_trigger

# The trainer's own defaults. They differ from this service's.
WIDTH, HEIGHT, SEED, GUIDANCE_SCALE, STEPS, NETWORK_MULTIPLIER, FORMAT = 512, 512, 0, 7.0, 20, 1.0, "jpg"
RANDOM_SEED = -1
# The trainer floors width and height to multiples of this (pixels).
DIVISOR = 8
MAX_SAMPLES = 1_000
CONTROL_IMAGES = ("ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3")


@dataclass(frozen=True)
class Sample:
    """What the trainer makes one of its sample images from.

    `prompt` has the trigger word and no flags. `width` and `height` are pixels, floored to multiples of 8.
    `control_images` are the trainer's paths by key, in order: `ctrl_img` stays apart from `ctrl_img_1`. `problem` says
    why the sample cannot be read; then the other values mean nothing.
    """

    number: int
    prompt: str = ""
    negative_prompt: str = ""
    width: int = WIDTH
    height: int = HEIGHT
    seed: int = SEED
    guidance_scale: float = GUIDANCE_SCALE
    steps: int = STEPS
    network_multiplier: float = NETWORK_MULTIPLIER
    control_images: tuple[tuple[str, str], ...] = ()
    problem: str | None = None

    @property
    def is_random(self) -> bool:
        """Whether the trainer drew the seed, which it writes nowhere."""
        return self.seed == RANDOM_SEED


@dataclass(frozen=True)
class _Seeds:
    """The seeds that samples have without one of their own."""

    first: int
    walks: bool

    def of(self, items: list[Mapping[str, Any]]) -> Iterator[int]:
        """The seed of each sample. Raises ValueError.

        With `walk_seed`, each one's is the first seed plus its number. Without, a sample's own seed also holds for the
        samples after it.
        """
        current = self.first
        for number, item in enumerate(items):
            if self.walks:
                current = self.first + number
            own = item.get("seed")
            if own is not None:
                current = _integer(own, "seed")
            yield current


def read_samples(section: Mapping[str, Any], trigger_word: str | None) -> tuple[Sample, ...]:
    """The samples of the config's `sample` section, in order. What one leaves out comes from the section.

    Raises ValueError with a sentence if the section as a whole cannot be read.
    """
    items = _items(section)
    seeds = _Seeds(_integer(_given(section, "seed", SEED), "seed"), bool(section.get("walk_seed")))
    found = zip(items, seeds.of(items), strict=True)
    return tuple(_sample(number, section, item, seed, trigger_word) for number, (item, seed) in enumerate(found))


def _items(section: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The samples as mappings: `samples`, or else `prompts`."""
    samples = section.get("samples")
    if samples is None:
        samples = [{"prompt": prompt} for prompt in _list(section.get("prompts"), "prompts")]
    items = _list(samples, "samples")
    if len(items) > MAX_SAMPLES:
        raise ValueError(f"it has {len(items)} samples, and at most {MAX_SAMPLES} are read")
    if not all(isinstance(item, Mapping) for item in items):
        raise ValueError("a sample in it is no mapping")
    return items


def _sample(
    number: int, section: Mapping[str, Any], item: Mapping[str, Any], seed: int, trigger_word: str | None
) -> Sample:
    try:
        return _read_sample(number, {**section, **_without_nulls(item)}, seed, trigger_word)
    except ValueError as error:
        return Sample(number, problem=f"the trainer's settings of sample {number} cannot be read: {error}")


def _read_sample(number: int, values: Mapping[str, Any], seed: int, trigger_word: str | None) -> Sample:
    """The sample with these values, flags included: they win over all else."""
    prompt = values.get("prompt")
    if not isinstance(prompt, str):
        raise ValueError("it has no prompt")
    if not all(is_text(value) for value in values.values() if isinstance(value, str)):
        raise ValueError("a text in it is not Unicode")
    text, flags = split_flags(with_trigger(prompt, trigger_word))
    plain = Sample(
        number=number,
        prompt=text,
        negative_prompt=_negative(values.get("neg")),
        width=_integer(_given(values, "width", WIDTH), "width"),
        height=_integer(_given(values, "height", HEIGHT), "height"),
        seed=seed,
        guidance_scale=_number(_given(values, "guidance_scale", GUIDANCE_SCALE), "guidance_scale"),
        steps=_integer(_given(values, "sample_steps", STEPS), "sample_steps"),
        network_multiplier=_multiplier(_given(values, "network_multiplier", NETWORK_MULTIPLIER)),
        control_images=_control_images(values),
    )
    sample = replace(plain, **flags)
    _finite(sample.guidance_scale, "guidance_scale")
    _finite(sample.network_multiplier, "network_multiplier")
    width, height = sample.width // DIVISOR * DIVISOR, sample.height // DIVISOR * DIVISOR
    return replace(sample, width=width, height=height)


def _multiplier(value: Any) -> float:
    """A strength. The trainer takes a text that is no number for 1.0."""
    if not isinstance(value, str):
        return _number(value, "network_multiplier")
    try:
        return float(value)
    except ValueError:
        return NETWORK_MULTIPLIER


def _negative(value: Any) -> str:
    """The negative prompt. `false` and nothing at all mean the empty one."""
    return value if isinstance(value, str) else ""


def _control_images(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    found = ((key, values.get(key)) for key in CONTROL_IMAGES)
    return tuple((key, path) for key, path in found if isinstance(path, str) and path)


def _given(values: Mapping[str, Any], key: str, default: Any) -> Any:
    value = values.get(key)
    return default if value is None else value


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _integer(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or _finite(value, name) % 1:
        raise ValueError(f"{name} is not a whole number")
    return int(value)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is not a number")
    return _finite(value, name)


def _finite(value: float, name: str) -> float:
    """The number as a float. Raises ValueError if there is no such float, as of an integer of 400 digits."""
    with suppress(OverflowError):
        if math.isfinite(value):
            return float(value)
    raise ValueError(f"{name} is not a finite number")


def _list(value: Any, name: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"{name} is not a list")
    return value
