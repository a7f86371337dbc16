"""An application with keys, and the things in it that requests can name: requests, sweeps, uploads, a training job."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from fastapi import FastAPI

from serve_app.api.app import create_app
from serve_app.config import AppConfig, IngressSettings
from serve_app.intake.keys import new_key
from serve_app.intake.service import Service
from serve_app.storage.artifacts import Artifacts
from tests.conftest import as_png, noise_image
from tests.fuzzing.asgi import HttpRequest, send
from tests.training_folder import sample_name, trainer_config, write_checkpoints, write_config, write_sample_image
from tests.unit.conftest import LORA, InstantEditors, safetensors_bytes

MODELS = ("qwen_image_edit", "qwen_image")
PRESETS = {
    "poster": {"model": MODELS[0], "loras": [{"path": LORA}], "sample_steps": 2, "size": "64x64"},
    "of-green": {"model": MODELS[1], "tenants": ["green"]},
}
JOB = "my_job"
SAMPLE = {"prompt": "a cat", "ctrl_img": "/home/me/cat.png", "width": 64, "height": 64, "sample_steps": 2}
# Small, so that bodies that are too large are among those that are sent.
MAX_BODY_BYTES = 60_000
PATIENCE_S = 60.0
# The name of the service in requests.
HOST = b"localhost"
# No name is looked up and no address is connected to: what a mutation comes up with may be anybody's.
NOWHERE = ["0.0.0.0/0", "::/0"]


@dataclass
class World:
    """`keys` are by caller; `ids` are values of parameters in paths, by their names."""

    app: FastAPI
    document: dict[str, Any]
    keys: dict[str, str]
    ids: dict[str, list[str]]
    image: bytes

    @property
    def image_name(self) -> str:
        """How a request names the control image that is stored already."""
        return f"sha256:{hashlib.sha256(self.image).hexdigest()}"


@asynccontextmanager
async def world_in(folder: Path, config: AppConfig, *, with_keys: bool = True) -> AsyncIterator[World]:
    """A running application of this config, which lies in `folder`.

    Without keys, its history is open to the machine itself, as in the shipped config.
    """
    keys = _write_keys(folder / "keys.yaml")
    auth = {"auth": {"keys_file": str(folder / "keys.yaml")}} if with_keys else {"history_without_keys": True}
    changed = config.model_dump() | {
        "models": [config.models[0].model_dump() | {"id": model} for model in MODELS],
        "fetch": config.fetch.model_dump() | {"denied_networks": NOWHERE},
        "max_body_bytes": MAX_BODY_BYTES,
        **auth,
    }
    config = AppConfig.model_validate(changed)
    image = _write_files(Path(config.lora_root))

    async def editor_count() -> dict[str, int]:
        return dict.fromkeys(MODELS, 1)

    service = Service(config, InstantEditors(Artifacts(config.artifacts_url)), editor_count)
    service.reconfigure(IngressSettings.model_validate({"presets": PRESETS}))
    app = create_app(service)
    async with app.router.lifespan_context(app):
        world = World(app, app.openapi(), keys, {"name": [JOB], "path": [LORA], "n": ["0", "1"]}, image)
        await _fill(world)
        yield world


def _write_keys(file: Path) -> dict[str, str]:
    """Callers that may do everything, a part of it, or little at a time."""
    pairs = {name: new_key() for name in ("red", "green", "reader", "limited", "operator")}
    hashes = {name: sha256 for name, (_, sha256) in pairs.items()}
    allowed = {"keys": [hashes["green"]], "allow": ["job/**", "preset:p*"]}
    limits = {"submits_per_minute": 30, "max_unfinished": 2, "gpu_seconds_per_day": 5, "sweep_cells_per_day": 10}
    tenants = {
        "red": {"keys": [hashes["red"], {"sha256": hashes["reader"], "scopes": ["read"]}]},
        "green": allowed,
        "limited": {"keys": [hashes["limited"]], "limits": limits},
    }
    file.write_text(yaml.safe_dump({"tenants": tenants, "operators": [hashes["operator"]]}))
    return {name: key for name, (key, _) in pairs.items()}


def _write_files(lora_root: Path) -> bytes:
    """Write a training job below the LoRA root. Returns the file of a control image."""
    folder = lora_root / JOB
    write_config(folder, trainer_config(sample={"samples": [SAMPLE]}))
    write_checkpoints(folder, safetensors_bytes())
    image = as_png(noise_image(32, 32))
    write_sample_image(folder, sample_name(250, 0), image)
    return image


async def _fill(world: World) -> None:
    """Make what requests can name, as the tenant that sends most of them."""
    world.ids["file"] = [sample_name(250, 0)]
    upload = await _call(world, "POST", "/v1/uploads", world.image)
    world.ids["upload_id"] = [upload["id"]]
    body = edit(f"upload:{upload['id']}")
    submitted = await _call(world, "POST", "/v1/inference", body)
    world.ids["request_id"] = [submitted["request_id"]]
    sweep = await _call(world, "POST", "/v1/sweeps", {"base": body, "axes": {"seeds": [1, 2]}})
    world.ids["sweep_id"] = [sweep["sweep_id"]]
    previews = {"step": 250, "control_images": {"cat.png": world.image_name}}
    started = await _call(world, "POST", f"/v1/training-jobs/{JOB}/previews", previews)
    world.ids["previews_id"] = [started["id"]]
    async with asyncio.timeout(PATIENCE_S):
        while (await _call(world, "GET", f"/v1/sweeps/{sweep['sweep_id']}"))["status"] != "succeeded":
            await asyncio.sleep(0.02)


async def _call(world: World, method: str, path: str, body: Any = b"") -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = ((b"host", HOST), (b"x-api-key", world.keys["red"].encode()))
    headers += ((b"content-type", b"application/json"), (b"content-length", str(len(data)).encode()))
    answer = await send(world.app, HttpRequest("setup", method, path, headers=headers, body=data))
    assert answer.status in (200, 202), bytes(answer.body)
    return json.loads(answer.body)


def edit(image: str, **fields: Any) -> dict[str, Any]:
    """A valid body of `POST /v1/inference`."""
    prompt = {"prompt": "[trigger] at night", "ctrl_img": image, "width": 64, "height": 64, "sample_steps": 2}
    return {"model": MODELS[0], "prompts": [prompt], "loras": [{"path": LORA}], **fields}
