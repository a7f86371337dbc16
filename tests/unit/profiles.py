"""Colour profiles, as much of them as a name needs."""

import struct


def icc_profile(name: str, version: int = 2, space: bytes = b"RGB ") -> bytes:
    """An ICC profile of this description and colour space, without any colours."""
    if version == 2:
        text = name.encode("latin-1") + b"\0"
        tag = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text
    else:
        text = name.encode("utf-16-be")
        tag = b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    table = struct.pack(">I4sII", 1, b"desc", 144, len(tag))
    header = struct.pack(">I4sI4s4s", 144 + len(tag), b"none", version << 24, b"mntr", space)
    return header.ljust(36, b"\0") + b"acsp".ljust(92, b"\0") + table + tag
