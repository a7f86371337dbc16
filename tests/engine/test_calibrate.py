"""`edits-server calibrate` with a real engine: images, latents and seconds of tiers, kept where a service looks."""

import asyncio
import os
import signal
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from starlette.testclient import TestClient
from typer.testing import CliRunner

from serve_app.commands.config_file import read_config_file
from serve_app.commands.main import app
from serve_app.config import AppConfig, ModelConfig
from serve_app.engine.protocol import Edited
from serve_app.engine.torch_engine import TorchEngine
from serve_app.intake.calibrations.losses import MeasuredLosses
from serve_app.jobs.calibrations import Calibration
from serve_app.jobs.store import JobStore
from serve_app.tasks import Loss
from tests.unit.conftest import Application, safetensors_bytes

MODEL = "qwen_image"
TIERS = {"balanced": {"guidance_gate": 0.9}, "fast": {"steps": 1}}
PROMPTS = [{"prompt": "a cat", "sample_steps": 2}, {"prompt": "a dog", "sample_steps": 2, "seed": 7}]
LORA = "job/lora.safetensors"
EXACT = "2 steps at guidance 4"


@pytest.fixture
def config_path(tmp_path) -> Path:
    (tmp_path / "loras/job").mkdir(parents=True)
    (tmp_path / "loras" / LORA).write_bytes(safetensors_bytes())
    sized = [prompt | {"width": 64, "height": 64} for prompt in PROMPTS]
    (tmp_path / "prompts.yaml").write_text(yaml.safe_dump(sized))
    model = {"id": MODEL, "checkpoint": "miniature-random", "device": "cpu", "threads": 1, "warm_up": [[64, 64]]}
    model |= {"tiers": TIERS}
    args = {"models": [model], "lora_root": "loras", "artifacts_url": "artifacts"}
    args |= {"jobs": {"database_url": "sqlite+aiosqlite:///jobs.sqlite3"}}
    application = {"name": "edits", "import_path": "serve_app.app:build", "args": args}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"applications": [application]}))
    return path


def calibrate(path: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["calibrate", str(path), "--prompts", str(path.parent / "prompts.yaml"), *options])


def calibrated(path: Path, *options: str) -> str:
    result = calibrate(path, *options)
    assert result.exit_code == 0, result.output
    return result.output


async def _stored(config: AppConfig) -> tuple[list[Calibration], Loss | None]:
    """Everything that is stored, and what a service finds for `fast` without LoRAs."""
    store = JobStore(config.jobs)
    await store.open()
    try:
        model = config.models[0]
        found = await MeasuredLosses(store.calibrations).find(model, "fast", model.tiers["fast"].digest(), [])
        return await store.calibrations.all(), found and found.loss
    finally:
        await store.close()


def test_tiers_are_measured_and_stored_for_the_service(config_path):
    output = calibrated(config_path, "--lora", f"{LORA}:0.5")
    stored, found = asyncio.run(_stored(read_config_file(config_path).config))
    by_key = {(each.key.tier, tuple(lora["path"] for lora in each.details["adapters"])): each for each in stored}
    assert set(by_key) == {(tier, loras) for tier in TIERS for loras in ((), (LORA,))}
    # With two steps, the gate leaves out none.
    same = by_key[("balanced", ())].loss
    assert (same.psnr_db.worst, same.ssim.worst, same.latents) == (None, 1.0, 0.0)
    assert found == by_key[("fast", ())].loss
    assert found is not None
    assert found.psnr_db.worst is not None
    assert found.psnr_db.worst < 60
    assert found.latents is not None
    assert 0 < found.latents < 2
    assert (found.cases, found.on) == (2, f"2 prompts of prompts.yaml, without LoRAs, exact with {EXACT}")
    assert min(found.exact_s, found.tier_s) > 0
    assert by_key[("fast", (LORA,))].loss.on == f"2 prompts of prompts.yaml, with {LORA} at 0.5, exact with {EXACT}"
    assert by_key[("fast", ())].details["sizes"] == ["64x64"]
    _, _, table = output.partition("How far each tier is from exact")
    for each in stored:
        # Nothing is cut.
        for text in (each.key.tier, LORA, EXACT, f"{each.loss.latents:.4f}", f"{each.loss.exact_s:.2f}"):
            assert text in table
    # The service finds it by the LoRA, whatever its strength.
    said = explained(read_config_file(config_path).config, loras=[{"path": LORA}])
    assert said["loss"]["on"] == f"2 prompts of prompts.yaml, with {LORA} at 0.5, exact with {EXACT}"
    assert said["loss"]["latents"] == by_key[("fast", (LORA,))].loss.latents


@pytest.mark.parametrize("of_shell", [signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "background"])
def test_the_current_image_is_finished_after_sigterm_however_often_it_comes(config_path, monkeypatch, of_shell):
    finished, edit = [], TorchEngine.edit

    def interrupted(*arguments: Any) -> Edited:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
        finished.append(edit(*arguments))
        return finished[-1]

    monkeypatch.setattr(TorchEngine, "edit", interrupted)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, of_shell)
    try:
        result = calibrate(config_path)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    # The thread of the engine was waited for.
    assert result.exit_code == 130
    assert finished
    assert "interrupted; what was measured is stored" in result.stderr


def test_without_base_and_loras_there_is_nothing_to_measure(config_path):
    result = calibrate(config_path, "--no-base")
    assert (result.exit_code, result.stderr) == (
        1,
        "edits-server: there is nothing to measure: name a LoRA with --lora, or leave out --no-base\n",
    )


def test_a_tier_with_weights_of_its_own_has_the_memory_of_the_first_engine(config_path, monkeypatch):
    text = config_path.read_text().replace(yaml.safe_dump(TIERS["fast"]).strip(), "quantization: fp8")
    config_path.write_text(text)
    loaded: list[weakref.ref[TorchEngine]] = []
    load = TorchEngine.load

    def recorded(config: ModelConfig) -> TorchEngine:
        assert [engine() for engine in loaded] == [None] * len(loaded)
        engine = load(config)
        loaded.append(weakref.ref(engine))
        return engine

    monkeypatch.setattr(TorchEngine, "load", recorded)
    calibrated(config_path, "--tier", "fast")
    assert len(loaded) == 2
    stored, _ = asyncio.run(_stored(read_config_file(config_path).config))
    [found] = stored
    assert found.loss.psnr_db.worst is not None
    assert found.details["tier"]["quantization"] == "fp8"


def explained(config: AppConfig, **fields: Any) -> dict[str, Any]:
    """The effective record of a request in `fast` to a service with this config."""
    body = {"model": MODEL, "quality": "fast", "prompts": [{"prompt": "a cat", "width": 64, "height": 64}]} | fields
    with TestClient(Application(config).app) as client:
        answer = client.post("/v1/explain", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["effective"][0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--tier", "turbo"], "has no tier 'turbo'; it has balanced, fast"),
        (["--lora", "no.safetensors"], "no.safetensors"),
        (["--lora", f"{LORA}:5"], f"--lora {LORA}:5: Input should be less than or equal to 2"),
        (["--training-job", "job"], "either a file of prompts"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(config_path, options, reason):
    result = calibrate(config_path, *options)
    assert result.exit_code == 1
    assert result.output.startswith("edits-server: ")
    assert reason in result.output
