"""Patterns of paths, as in `.gitignore` files: `*` stays within a folder, `**` does not.

They come from clients, so they are matched without backtracking: the time grows with the length of the pattern times
that of the path.
"""

import re
from collections.abc import Set
from dataclasses import dataclass

# Characters that make a path a pattern.
WILDCARDS = frozenset("*?[")
# How many wildcards a pattern may have.
MAX_WILDCARDS = 20
# The parts of a pattern. `[a-c]` is one of these characters, `[!a-c]` any other.
_WILDCARD = re.compile(r"(\*\*/|\*+|\?|\[!?[^]]+\])")
_CHARACTERS = re.compile(r"\[!?[^]]+\]")


@dataclass(frozen=True)
class PathPattern:
    """A pattern, as its wildcards and the texts between them."""

    parts: tuple[str, ...]

    def fullmatch(self, path: str) -> bool:
        """Whether the whole path fits."""
        # The positions in the path that the parts so far can lead to.
        positions: Set[int] = {0}
        for part in self.parts:
            positions = _after(part, path, positions)
            if not positions:
                return False
        return len(path) in positions


def compiled(pattern: str) -> PathPattern:
    """The pattern of a text. `**/` is any number of folders. Raises ValueError with a sentence."""
    parts = tuple(part for part in _WILDCARD.split(pattern) if part)
    wildcards = [part for part in parts if _is_wildcard(part)]
    if len(wildcards) > MAX_WILDCARDS:
        raise ValueError(f"the pattern has {len(wildcards)} wildcards, and at most {MAX_WILDCARDS} are accepted")
    for part in wildcards:
        if part.startswith("["):
            for first, last in _ranges(part):
                if first > last:
                    raise ValueError(f"{part!r} in the pattern names characters from {first!r} to {last!r}")
    return PathPattern(parts)


def _is_wildcard(part: str) -> bool:
    return part[0] in "*?" or bool(_CHARACTERS.fullmatch(part))


def _after(part: str, path: str, positions: Set[int]) -> Set[int]:
    """Where a part can end that begins at one of these positions."""
    if not _is_wildcard(part):
        return {start + len(part) for start in positions if path.startswith(part, start)}
    if part == "**/":
        return _after_folders(path, positions)
    if part == "*":
        return _within_folder(path, positions)
    if part[0] == "*":
        return set(range(min(positions), len(path) + 1))
    return {start + 1 for start in positions if start < len(path) and _fits(part, path[start])}


def _within_folder(path: str, positions: Set[int]) -> Set[int]:
    found: set[int] = set()
    for start in sorted(positions):
        end = start
        while end not in found:
            found.add(end)
            if end == len(path) or path[end] == "/":
                break
            end += 1
    return found


def _after_folders(path: str, positions: Set[int]) -> Set[int]:
    """The positions themselves, and those after folders whose names are not empty."""
    found: set[int] = set()
    for start in sorted(positions):
        while start not in found:
            found.add(start)
            end = path.find("/", start)
            if end <= start:
                break
            start = end + 1
    return found


def _fits(part: str, character: str) -> bool:
    """Whether `?` or a set of characters takes this one. None takes a slash."""
    if character == "/":
        return False
    if part == "?":
        return True
    return any(first <= character <= last for first, last in _ranges(part)) != part.startswith("[!")


def _ranges(part: str) -> list[tuple[str, str]]:
    """The characters of a set, as ranges: `[a-cx]` has a to c, and x."""
    content = part[2 if part.startswith("[!") else 1 : -1]
    ranges, index = [], 0
    while index < len(content):
        is_range = index + 2 < len(content) and content[index + 1] == "-"
        ranges.append((content[index], content[index + 2] if is_range else content[index]))
        index += 3 if is_range else 1
    return ranges
