"""Colour profiles (ICC): the name of an image's profile. Profiles are never applied."""

import struct

MAX_TAGS = 100
MAX_NAME = 60
UNNAMED = "(ICC, without a name)"


def foreign_profile(profile: object) -> str | None:
    """The quoted name of an ICC profile that is not sRGB; None for sRGB, and if there is no profile.

    The name is the profile's own description.
    """
    if not isinstance(profile, bytes) or not profile:
        return None
    name = _description(profile)
    if not name:
        return UNNAMED
    # Linear sRGB has the same primaries but other levels.
    is_srgb = "srgb" in name.lower() and "linear" not in name.lower() and profile[16:20] == b"RGB "
    return None if is_srgb else repr(name)


def _description(profile: bytes) -> str:
    """The text of the profile's `desc` tag, of type `desc` (version 2) or `mluc` (version 4); "" without one."""
    try:
        (tags,) = struct.unpack_from(">I", profile, 128)
        for index in range(min(tags, MAX_TAGS)):
            signature, offset, size = struct.unpack_from(">4sII", profile, 132 + 12 * index)
            if signature == b"desc":
                return _text(profile[offset : offset + size])
    except struct.error:
        # A broken profile does not make the pixels invalid: it counts as one without a name.
        return ""
    return ""


def _text(tag: bytes) -> str:
    if tag.startswith(b"desc"):
        (length,) = struct.unpack_from(">I", tag, 8)
        text = tag[12 : 12 + min(length, MAX_NAME)].decode("latin-1")
    elif tag.startswith(b"mluc"):
        # The first language's record: its length and its offset, in bytes.
        length, offset = struct.unpack_from(">II", tag, 20)
        text = tag[offset : offset + min(length, 2 * MAX_NAME)].decode("utf-16-be", errors="replace")
    else:
        return ""
    return "".join(letter for letter in text if letter.isprintable()).strip()
