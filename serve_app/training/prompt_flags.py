"""The flags in a prompt of the trainer: `a cat --w 768 --d 7` is the prompt `a cat`, 768 pixels wide, with seed 7."""

from collections.abc import Callable, Mapping
from typing import Any

# The field of a sample that each flag sets, and how its text is read. The trainer's other flags change nothing here.
FLAGS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "n": ("negative_prompt", str),
    "w": ("width", int),
    "h": ("height", int),
    "d": ("seed", int),
    "seed": ("seed", int),
    "l": ("guidance_scale", float),
    "cfg": ("guidance_scale", float),
    "s": ("steps", int),
    "steps": ("steps", int),
    "m": ("network_multiplier", float),
    "network_multiplier": ("network_multiplier", float),
}
# What the trainer replaces by the trigger word.
PLACEHOLDERS = ("[trigger]", "[name]")
# Longest text of a number that is read.
MAX_NUMBER_CHARS = 50


def with_trigger(prompt: str, trigger_word: str | None) -> str:
    """The prompt with the trigger word put in where it names it. Without a word it stays as it is."""
    if trigger_word is None:
        return prompt
    for placeholder in PLACEHOLDERS:
        prompt = prompt.replace(placeholder, trigger_word)
    return prompt


def split_flags(prompt: str) -> tuple[str, dict[str, Any]]:
    """The prompt without its flags, and the fields of a sample that they set.

    Raises ValueError with a sentence about a flag whose value is no number: the trainer stops there, too.
    """
    first, *parts = prompt.strip().split("--")
    fields: dict[str, Any] = {}
    for part in parts:
        flag = part.split(" ")[0].strip()
        content = part[len(flag) :].strip()
        if flag in FLAGS:
            name, read = FLAGS[flag]
            fields[name] = _read(flag, content, read)
    return first.strip(), fields


def _read(flag: str, content: str, read: Callable[[str], Any]) -> Any:
    if read is not str and len(content) > MAX_NUMBER_CHARS:
        raise ValueError(f"the flag --{flag} of the prompt has no number")
    try:
        return read(content)
    except ValueError:
        raise ValueError(f"the flag --{flag} of the prompt has no number") from None
