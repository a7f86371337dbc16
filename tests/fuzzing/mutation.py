"""Changes of JSON values, texts and bytes, by a sequence of random numbers."""

import random
from collections.abc import Callable, Sequence
from typing import Any

# Values that parsers, databases and arithmetic have trouble with.
ODD_NUMBERS: tuple[Any, ...] = (
    *(
        0,
        -1,
        1,
        2,
        64,
        255,
        256,
        4096,
        2**31 - 1,
        2**31,
        -(2**31) - 1,
        2**53 + 1,
        2**63 - 1,
        2**63,
        -(2**63) - 1,
        10**30,
    ),
    *(0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, float("inf"), float("nan")),
)
ODD_TEXTS: tuple[str, ...] = (
    *("", " ", "\0", "a\0b", "\n", "\r\nX-Injected: 1", "\t", "null", "true", "0", "-1", "1e999", "NaN", "[]", "{}"),
    *("é", "日本語", "🦊", "\ud83d", "\udc00x", "\u202e", "\ufeff", "\u2028", "İ", "ß", "x" * 300, "x" * 9_000),
    *(
        "../../../etc/passwd",
        "..\\..\\x",
        "/etc/passwd",
        "file:///etc/passwd",
        "%2e%2e%2f",
        "%00",
        "%",
        "*",
        "**",
        "[a",
    ),
    *("' OR 1=1 --", '"; DROP TABLE requests; --', "%s%n", "{0}", "${PATH}", "{{7*7}}", "<script>alert(1)</script>"),
    *("http://", "http://[", "http://127.0.0.1/x", "http://169.254.169.254/", "https://x:y@z/", "hf://a/b/c", "data:,"),
    *("data:image/png;base64,", "data:image/png;base64,AAAA", "part:x", "upload:x", "sha256:x", "sha256:" + "0" * 64),
    *("1024x1024", "64x64", "0x0", "99999999999x1", "input", "auto", "[trigger]", "preset:", "2026-01-01T00:00:00Z"),
)
ODD_CONTAINERS: tuple[Any, ...] = ([], {}, [[]], {"": ""}, [None], {"a": {"b": {}}}, [1, "x", None, True], ["x"] * 120)
ODD_BYTES: tuple[bytes, ...] = (
    b"\0",
    b"\xff",
    b"\xff\xfe",
    b"\xc0\x80",
    b"\r\n",
    b"\r\n\r\n",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
)
ODD_BYTES += (
    b",",
    b":",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"NaN",
    b"Infinity",
    b"1e9999",
    b"-",
    b"1" * 5_000,
    b"[" * 2_000,
)
MAX_INSERTED = 50


def odd_value(chance: random.Random) -> Any:
    kinds: Sequence[Sequence[Any]] = (ODD_NUMBERS, ODD_TEXTS, ODD_CONTAINERS, (None, True, False))
    return chance.choice(chance.choice(kinds))


def changed_text(text: str, chance: random.Random) -> str:
    """The text with one change."""
    at = chance.randrange(len(text) + 1)
    changes: Sequence[Callable[[], str]] = (
        lambda: chance.choice(ODD_TEXTS),
        lambda: text[:at] + chance.choice(ODD_TEXTS) + text[at:],
        lambda: text[:at],
        lambda: text[:at] + text[at + 1 :],
        lambda: text[:at] + chr(chance.choice((chance.randrange(128), chance.randrange(0x11000)))) + text[at + 1 :],
        lambda: text * chance.choice((2, 10)),
        lambda: text.swapcase(),
    )
    return chance.choice(changes)()


def changed_number(number: float, chance: random.Random) -> Any:
    return chance.choice(
        (-number, number + 1, number - 1, number * 1000, float(number), str(number), odd_value(chance))
    )


def changed_bytes(data: bytes, chance: random.Random, odd: Sequence[bytes] = ODD_BYTES) -> bytes:
    """The bytes with one change."""
    at = chance.randrange(len(data) + 1)
    size = chance.choice((1, 1, 2, 4, 16, 200))
    changes: Sequence[Callable[[], bytes]] = (
        lambda: data[:at],
        lambda: data[:at] + chance.choice(odd) * chance.choice((1, 1, 2, MAX_INSERTED)) + data[at:],
        lambda: data[:at] + data[at + size :],
        lambda: data[:at] + chance.randbytes(size) + data[at + size :],
        lambda: data[:at] + data[at : at + size] * 2 + data[at + size :],
        lambda: data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :] if at < len(data) else data,
    )
    return chance.choice(changes)()


def changed_json(value: Any, chance: random.Random) -> Any:
    """A copy of a JSON value with one change at a random place. Only what leads to the place is copied."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        return {**value, key: changed_json(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        at = chance.randrange(len(value))
        return [*value[:at], changed_json(value[at], chance), *value[at + 1 :]]
    return _changed_here(value, chance)


def _changed_here(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict) and chance.random() < 0.8:
        return _changed_object(value, chance)
    if isinstance(value, list) and chance.random() < 0.8:
        return _changed_list(value, chance)
    if isinstance(value, str) and chance.random() < 0.6:
        return changed_text(value, chance)
    if isinstance(value, int | float) and chance.random() < 0.6:
        return changed_number(value, chance)
    return odd_value(chance)


def _changed_object(value: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    changed = dict(value)
    if changed and chance.random() < 0.5:
        removed = changed.pop(chance.choice(list(changed)))
        if chance.random() < 0.3:
            changed[changed_text("name", chance)] = removed
    else:
        changed[chance.choice(ODD_TEXTS)] = odd_value(chance)
    return changed


def _changed_list(value: list[Any], chance: random.Random) -> list[Any]:
    changed = list(value)
    if changed and chance.random() < 0.6:
        changed *= chance.choice((0, 2, 2, 30))
    else:
        changed.insert(chance.randrange(len(changed) + 1), odd_value(chance))
    return changed
