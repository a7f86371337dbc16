"""Patterns of paths, as in `.gitignore` files: `*` stays within a folder, `**` does not."""

import re

# Characters that make a path a pattern.
WILDCARDS = frozenset("*?[")
# The parts of a pattern. `[a-c]` is one of these characters, `[!a-c]` any other.
_WILDCARD = re.compile(r"(\*\*/|\*+|\?|\[!?[^]]+\])")
_MEANINGS = {"**/": "(?:[^/]+/)*", "*": "[^/]*", "**": ".*", "?": "[^/]"}
_CHARACTERS = re.compile(r"\[!?[^]]+\]")


def compiled(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern, for `fullmatch`. `**/` is any number of folders. Raises ValueError."""
    try:
        return re.compile("".join(_MEANINGS.get(part) or _class_or_text(part) for part in _WILDCARD.split(pattern)))
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a pattern: {error}") from error


def _class_or_text(part: str) -> str:
    if not _CHARACTERS.fullmatch(part):
        return re.escape(part)
    negated = part.startswith("[!")
    return f"[{'^/' if negated else ''}{re.escape(part[2 if negated else 1 : -1]).replace(chr(92) + '-', '-')}]"
