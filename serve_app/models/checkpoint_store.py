"""What a checkpoint in a store consists of, and in which folders of a node's disk its copies lie. Free of torch."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import fsspec

from serve_app.errors import CheckpointRefused
from serve_app.storage.identity import listed_identity
from serve_app.storage.os_errors import as_os_errors

# What a checkpoint consists of; other files, such as pictures or weights of other frameworks, stay where they are.
SUFFIXES = frozenset((".json", ".safetensors", ".txt", ".jinja", ".model"))
# A file of digests next to model_index.json, as the command sha256sum writes it.
DIGESTS = "SHA256SUMS"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a checkpoint: its path there and in the store, its size, and an identity that changes with it."""

    name: str
    path: str
    size: int
    identity: str
    # As Google's store tells it (base64). The ETag of S3 is a digest of the content in some buckets only.
    md5: str | None


# The files of a checkpoint by name.
Listing = Mapping[str, RemoteFile]


def list_files(filesystem: fsspec.AbstractFileSystem, root: str, url: str) -> Listing:
    """The files of the checkpoint at `url`. Blocks. Raises OSError, and CheckpointRefused for what is none."""
    with as_os_errors():
        listed = filesystem.find(root, detail=True)
    found = {}
    for path, info in sorted(listed.items()):
        name = path.removeprefix(root).strip("/")
        if is_part(name):
            found[name] = RemoteFile(name, path, info["size"], listed_identity(path, info), info.get("md5Hash"))
    if "model_index.json" not in found:
        raise CheckpointRefused(f"{url} has no model_index.json in diffusers' layout")
    return found


def is_part(name: str) -> bool:
    """Whether a file belongs to a checkpoint, by its path there."""
    path = PurePosixPath(name)
    if len(path.parts) == 1:
        return name in ("model_index.json", DIGESTS)
    return len(path.parts) == 2 and ".." not in path.parts and path.suffix in SUFFIXES


def content_of(files: Listing) -> str:
    """A SHA-256 (hex) that changes with each of the files, as far as their store tells."""
    return _digest("\0".join(f"{file.name}\0{file.identity}" for file in files.values()))


def copy_of(folder: Path, url: str, files: Listing) -> Path:
    """Where in `folder` the copy of this content of the checkpoint at `url` lies, once it is complete."""
    return folder / f"{_digest(url)[:16]}-{content_of(files)[:16]}"


def newest_copy(folder: Path, url: str) -> Path | None:
    """The complete copy of the checkpoint at `url` in `folder` that was used last, None if there is none."""
    copies = [each for each in folder.glob(f"{_digest(url)[:16]}-*") if each.is_dir() and not each.suffix]
    return max(copies, key=lambda each: each.stat().st_mtime, default=None)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
