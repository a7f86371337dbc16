"""Resident memory of every process of the service over 200 edits on one editor, with the real engine on the miniature.

python -m benchmarks.memory

Edits are small and have few steps; adapters, control images, sizes and prompts alternate. The table shows MiB before
the first edit and after every 50. The exit code is 1 if a process grows by more than 16 MiB from edit 100 to edit 200,
when every cache of the editor has seen all inputs many times. It is also 1 if a process started after edit 100, because
that means that an earlier one has ended.
"""

import base64
import io
import os
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import psutil

from benchmarks.local_service import EDITOR, MODEL, ROOT, cluster, declared, deploy, wait_until_running

EDITS, EVERY = 200, 50
# Growth that is no trend: pages that malloc keeps, buffers of logs.
TREND_MIB, FROM_EDIT = 16.0, 100
LORA = ROOT / "tests/loras/my_lora_job/my_lora.safetensors"
ADAPTERS, IMAGES = 5, 12
SIZES = ((64, 64), (96, 64), (64, 96), (128, 128))
PROMPTS = ("at night", "in the snow", "by the sea")
START_TIMEOUT_S, EDIT_TIMEOUT_S = 120, 60

Memory = dict[tuple[int, str], float]


def make_loras(folder: Path) -> list[str]:
    """Copies of one file under several names: to the service each is an adapter of its own."""
    names = [f"adapter-{number}.safetensors" for number in range(ADAPTERS)]
    folder.mkdir()
    for name in names:
        shutil.copy(LORA, folder / name)
    return names


def image(number: int) -> str:
    pixels = np.random.default_rng(number).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def body(number: int, loras: list[str]) -> dict[str, Any]:
    width, height = SIZES[number % len(SIZES)]
    prompt = {
        "prompt": PROMPTS[number % len(PROMPTS)],
        "ctrl_img": image(number % IMAGES),
        "width": width,
        "height": height,
        "sample_steps": 2,
        "seed": number,
    }
    chosen = [{"path": path} for path in loras[number % ADAPTERS :][: number % 3]]
    return {"model": MODEL, "prompts": [prompt], "loras": chosen}


def edit(client: httpx.Client, request: dict[str, Any]) -> None:
    """Make one edit, poll its status as a client does, and fetch its image."""
    id_ = client.post("/v1/inference", json=request).raise_for_status().json()["request_id"]
    deadline = time.monotonic() + EDIT_TIMEOUT_S
    while (status := client.get(f"/v1/requests/{id_}/status").json()["status"]) in ("in_queue", "in_progress"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"request {id_} is still {status}")
        time.sleep(0.05)
    result = client.get(f"/v1/requests/{id_}/result").raise_for_status().json()
    if status != "succeeded":
        raise RuntimeError(f"request {id_} is {status}: {result['error']}")
    client.get(httpx.URL(result["outputs"]["images"][0]["url"]).path).raise_for_status()


def resident() -> Memory:
    """Resident MiB of every process below this one, by process id and title."""
    found: Memory = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found[process.pid, _title(process.cmdline())] = process.memory_info().rss / 2**20
    # Ray starts and ends idle workers at any time.
    return {key: size for key, size in found.items() if not key[1].startswith("ray::IDLE")}


def _title(words: list[str]) -> str:
    """A process's name, without the method that it runs at the moment."""
    first = words[0] if words else ""
    if first.startswith("ray::"):
        return first.split(".")[0].strip()
    scripts = [word for word in words if word.endswith(".py")]
    return Path((scripts or [first])[0]).name


def measure(client: httpx.Client, loras: list[str]) -> dict[int, Memory]:
    seen, began = {0: resident()}, time.monotonic()
    for number in range(1, EDITS + 1):
        edit(client, body(number, loras))
        if number % EVERY == 0:
            seen[number] = resident()
            print(f"{number} edits after {time.monotonic() - began:.0f} s", flush=True)
    return seen


def table(seen: dict[int, Memory]) -> list[str]:
    heads = ["process", *(f"after {number}" if number else "start" for number in seen), f"from {FROM_EDIT} on"]
    rows = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for key in sorted(seen[EDITS], key=lambda key: key[1]):
        values = [f"{memory[key]:.0f}" if key in memory else "-" for memory in seen.values()]
        rows.append(f"| {key[1]} | {' | '.join(values)} | {growth(seen, key):+.1f} |")
    return rows


def growth(seen: dict[int, Memory], key: tuple[int, str]) -> float:
    """MiB that a process has grown by since `FROM_EDIT`; 0 for one that did not exist then."""
    return seen[EDITS][key] - seen[FROM_EDIT].get(key, seen[EDITS][key])


def faults(seen: dict[int, Memory]) -> list[str]:
    """Problems, one sentence each."""
    grown = [key[1] for key in seen[EDITS] if growth(seen, key) > TREND_MIB]
    born = [key[1] for key in seen[EDITS] if key not in seen[FROM_EDIT]]
    found = [f"more than {TREND_MIB:g} MiB from edit {FROM_EDIT} on: {', '.join(grown)}"] if grown else []
    if born:
        found.append(f"started after edit {FROM_EDIT}, so that no trend can be seen: {', '.join(born)}")
    return found


def main() -> None:
    # A proxy takes longer to start on a busy machine than Serve waits.
    os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"
    folder = Path(tempfile.mkdtemp(prefix="memory-"))
    try:
        loras = make_loras(folder / "loras")
        deployments = [{"name": EDITOR, "num_replicas": 1}]
        application = declared(folder, deployments, lora_root=str(folder / "loras"))
        with cluster() as url, httpx.Client(base_url=url, timeout=30) as client:
            deploy(application)
            wait_until_running(START_TIMEOUT_S)
            seen = measure(client, loras)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(table(seen)))
    if found := faults(seen):
        sys.exit(f"It FAILED: {'; '.join(found)}")
    print(f"No process grew by more than {TREND_MIB:g} MiB from edit {FROM_EDIT} to edit {EDITS}.")


if __name__ == "__main__":
    main()
