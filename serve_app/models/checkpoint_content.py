"""Which checkpoint a measurement was made on: its name, and a digest that changes with its files."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from serve_app.config import MINIATURE, CheckpointConfig
from serve_app.models.architecture import TRAINED_MINIATURE

# What counts of a checkpoint's folder: its configs and its weights.
SUFFIXES = (".json", ".safetensors")
# A file of weights has gigabytes, so that only samples of it are read: so many, of so many bytes each.
SAMPLES, SAMPLE_BYTES = 16, 4096


def checkpoint_name(model: CheckpointConfig) -> str:
    """What the config says about the checkpoint: a folder, or an id on the hub with its revision."""
    return model.checkpoint if model.revision is None else f"{model.checkpoint}@{model.revision}"


def checkpoint_content(model: CheckpointConfig) -> str | None:
    """A SHA-256 (hex) of the names and sizes of the checkpoint's files, and of samples of their content.

    None if its files are not in a local folder of this machine, or cannot be read: those of a hub id are in the hub's
    cache of the editors' machines, and its revision names their content. Blocks.
    """
    folder = TRAINED_MINIATURE if model.checkpoint == MINIATURE else Path(model.checkpoint)
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
