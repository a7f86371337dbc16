"""Which checkpoint a measurement was made on: its name, and a digest that changes with its files."""

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from serve_app.config import MINIATURE, CheckpointConfig
from serve_app.errors import CheckpointRefused
from serve_app.models.architecture import TRAINED_MINIATURE
from serve_app.models.checkpoint_store import content_of, list_files
from serve_app.storage.identity import open_store

logger = logging.getLogger(__name__)

# What counts of a checkpoint's folder: its configs and its weights.
SUFFIXES = (".json", ".safetensors")
# A file of weights has gigabytes, so that only samples of it are read: so many, of so many bytes each.
SAMPLES, SAMPLE_BYTES = 16, 4096


def checkpoint_name(model: CheckpointConfig) -> str:
    """What the config says about the checkpoint: a folder, or an id on the hub with its revision."""
    return model.checkpoint if model.revision is None else f"{model.checkpoint}@{model.revision}"


def checkpoint_content(model: CheckpointConfig) -> str | None:
    """A SHA-256 (hex) of the names and sizes of the checkpoint's files, and of samples of their content.

    That of a URL is of the names and versions that its store lists. None if the files are neither there nor in a local
    folder of this machine, or cannot be read: those of a hub id are in the hub's cache of the editors' machines, and
    its revision names their content. Blocks.
    """
    if "://" in model.checkpoint:
        return _content_at(model.checkpoint)
    return _content_in(TRAINED_MINIATURE if model.checkpoint == MINIATURE else Path(model.checkpoint))


def _content_in(folder: Path) -> str | None:
    if not (folder / "model_index.json").is_file():
        return None
    digest = hashlib.sha256()
    try:
        for path in sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES):
            digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
            for sample in _samples(path):
                digest.update(sample)
    except OSError:
        return None
    return digest.hexdigest()


def _content_at(url: str) -> str | None:
    try:
        filesystem, root = open_store(url)
        if isinstance(filesystem, LocalFileSystem):
            return _content_in(Path(root))
        return content_of(list_files(filesystem, root, url))
    except (OSError, ValueError, ImportError, CheckpointRefused) as error:
        logger.warning("the content of the checkpoint at %s is not known: %s", url, error)
        return None


def _samples(path: Path) -> Iterator[bytes]:
    """The whole of a small file; of a large one, samples from its start to its end."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= SAMPLES * SAMPLE_BYTES:
            yield file.read()
            return
        for number in range(SAMPLES):
            file.seek((size - SAMPLE_BYTES) * number // (SAMPLES - 1))
            yield file.read(SAMPLE_BYTES)
