import os
from pathlib import Path

import pytest
import torch

from serve_app.adapters.maker import make_lora
from serve_app.adapters.sources import fingerprint
from serve_app.models import miniature
from serve_app.tasks import AdapterUse
from tests.conftest import ROOT, THREADS

torch.set_num_threads(THREADS)

GOLDENS = Path(os.environ.get("GOLDENS", ROOT.parent / "shared/goldens"))


@pytest.fixture(scope="session")
def loras(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four different adapters in the trainer's format."""
    folder = tmp_path_factory.mktemp("loras")
    transformer = miniature.make().transformer
    paths = [folder / f"{seed}.safetensors" for seed in range(4)]
    for seed, path in enumerate(paths):
        make_lora(transformer, path, seed=seed)
    return paths


def use(path: Path, scale: float = 1.0) -> AdapterUse:
    return AdapterUse(fingerprint(str(path)), path.name, str(path), scale)
