"""How long a checkpoint's weights take from the disk to where an editor needs them, compared with reading the files.

    python -m benchmarks.loading --blocks 16     # fewer blocks than published: less to write first
    python -m benchmarks.loading --tiny          # a quick check on a CPU, with the miniature

Writes a checkpoint of random weights. Files are dropped from the page cache before a measurement, which needs root.
"""

import argparse
import gc
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from benchmarks import full_size
from serve_app.config import ModelConfig
from serve_app.models.registry import MODELS
from serve_app.pipeline import checkpoint, loading, miniature
from serve_app.pipeline.checkpoint import Pipeline
from serve_app.pipeline.layer_stream import NoChanges
from serve_app.pipeline.streaming import StreamedPlacement

SPEC = MODELS["qwen_image_edit"]


def report(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def read_files(folder: Path) -> None:
    """Read all weights in as many threads as the service does, into a buffer of each thread."""
    local = threading.local()
    chunks = [
        (file, begin)
        for file in sorted(folder.rglob("*.safetensors"))
        for begin in range(0, file.stat().st_size, loading.CHUNK_BYTES)
    ]

    def read(chunk: tuple[Path, int]) -> None:
        file, begin = chunk
        if not hasattr(local, "buffer"):
            local.buffer = bytearray(loading.CHUNK_BYTES)
        with file.open("rb", buffering=0) as opened:
            os.preadv(opened.fileno(), [local.buffer], begin)

    with ThreadPoolExecutor(loading.THREADS) as threads:
        list(threads.map(read, chunks))


def load(folder: Path, device: torch.device, offload: Literal["none", "stream"]) -> Pipeline:
    config = ModelConfig(id=SPEC.id, device=device.type, offload=offload)
    return checkpoint.load_folder(folder, config, SPEC, device, torch.bfloat16)


def former(folder: Path, device: torch.device) -> None:
    checkpoint.read(folder, torch.bfloat16).to(device)


def streamed(folder: Path, device: torch.device) -> None:
    StreamedPlacement(load(folder, device, "stream"), device, None, NoChanges())


def drop_cache() -> bool:
    """Whether the system's cache of files could be emptied."""
    try:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def measure(name: str, call: Callable[[], object], *, cold: bool) -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    dropped = drop_cache() if cold else False
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    call()
    took = time.perf_counter() - started
    grown = (psutil.Process().memory_info().rss - before) / 2**30
    report(what=name, files="read from the disk" if dropped else "cached", s=round(took, 2), grew_gib=round(grown, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=60)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    device = torch.device("cpu" if options.tiny else "cuda")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        started = time.perf_counter()
        if options.tiny:
            miniature.make(SPEC).save_pretrained(folder)
        else:
            full_size.PUBLISHED = replace(full_size.PUBLISHED, num_layers=options.blocks)
            full_size.make_pipeline(SPEC, device).save_pretrained(folder, max_shard_size="5GB")
        files = [*folder.rglob("*.safetensors")]
        size = sum(file.stat().st_size for file in files)
        report(gb=round(size / 1e9, 1), files=len(files), written_s=round(time.perf_counter() - started, 1))
        for cold in (True, False):
            measure("reading the files", lambda: read_files(folder), cold=cold)
            measure("resident", lambda: load(folder, device, "none"), cold=cold)
            measure("streamed", lambda: streamed(folder, device), cold=cold)
        measure("from_pretrained and .to()", lambda: former(folder, device), cold=False)


if __name__ == "__main__":
    main()
