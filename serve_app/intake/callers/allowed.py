"""What a tenant sees and may use: the LoRAs, presets and training jobs that its `allow` patterns name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit, urlunsplit

from serve_app.adapters.urls import is_url
from serve_app.models.repeat_request import without_url_secrets
from serve_app.policy.path_patterns import PathPattern, compiled

PRESET = "preset:"
# No file has this name: only a pattern that takes every name in a folder takes it.
ANY_NAME = "\0\0\0\0\0\0\0\0"


@dataclass(frozen=True)
class Allowed:
    """The patterns of a tenant. One that begins with `preset:` names presets, any other one LoRAs.

    A LoRA is named by its path below the LoRA root or by its URL. A training job is allowed with its whole folder.
    """

    loras: tuple[PathPattern, ...]
    presets: tuple[PathPattern, ...]

    @classmethod
    def of(cls, patterns: Sequence[str]) -> "Allowed":
        """Raises ValueError for a pattern that is none."""
        presets = [pattern.removeprefix(PRESET) for pattern in patterns if pattern.startswith(PRESET)]
        loras = [pattern for pattern in patterns if not pattern.startswith(PRESET)]
        return cls(tuple(map(compiled, loras)), tuple(map(compiled, presets)))

    def lora(self, path: str) -> bool:
        """Whether the tenant may use the LoRA that a request names so."""
        return _matches(self.loras, _plain_url(path) if is_url(path) else str(PurePosixPath(path)))

    def training_job(self, name: str) -> bool:
        """Whether the tenant sees the training job in this folder: a pattern allows every file in it."""
        return _matches(self.loras, f"{PurePosixPath(name)}/{ANY_NAME}")

    def preset(self, name: str, paths: Sequence[str]) -> bool:
        """Whether the tenant may use the preset of this name, which uses the LoRAs `paths`."""
        return _matches(self.presets, name) and all(map(self.lora, paths))


def _matches(patterns: Sequence[PathPattern], name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in patterns)


def _plain_url(url: str) -> str:
    """The URL without query and secrets; empty for one that a server may read as another, as with `..` in its path."""
    try:
        parts = urlsplit(without_url_secrets(url))
    except ValueError:
        return ""
    path = unquote(parts.path).replace("\\", "/")
    if ".." in path.split("/") or "\\" in parts.netloc:
        return ""
    return urlunsplit((parts.scheme.lower(), parts.netloc.lower(), path, "", ""))
