"""Where weights go: decided from the memory of the card and of its host, and explained."""

import pytest
import torch

from serve_app.config import ModelConfig
from serve_app.engine import placement
from serve_app.engine.placement import place, place_on
from serve_app.errors import CheckpointRefused
from serve_app.models.registry import MODELS
from serve_app.pipeline import checkpoint, miniature
from tests.engine.pipelines import CPU

GIB = 2**30
# The published sizes.
WEIGHTS = {"text_encoder": int(15.4 * GIB), "transformer": int(38.1 * GIB), "vae": int(0.24 * GIB)}
COMPILED = {"compile": "regional", "warm_up": [(64, 64)]}


@pytest.mark.parametrize(
    ("device", "host", "options", "offload", "copies"),
    [
        (139, 200, {}, "none", "device"),
        (79, 120, {}, "none", "host"),
        # Streaming merges every kind of adapter, and compiles; PEFT's layers do not.
        (79, 60, {}, "none", "host"),
        (79, 24, {}, "none", "hooks"),
        (47, 120, {}, "stream", "auto"),
        (7.5, 60, {}, "stream", "auto"),
        (59, 40, {"quantization": "fp8"}, "none", "auto"),
        (79, 120, {"adapter_weights": "hooks"}, "none", "hooks"),
        (79, 120, {"gpus_per_replica": 2, "device": "cuda"}, "none", "auto"),
        (139, 200, {"offload": "stream"}, "stream", "auto"),
        # Other editors make a tier in fp8; turbo changes nothing that streaming needs.
        (47, 120, {"tiers": {"fast": {"feature_cache": 0.1, "quantization": "fp8"}}}, "stream", "auto"),
        (47, 120, {"tiers": {"turbo": {"steps": 8}}}, "stream", "auto"),
    ],
)
def test_weights_go_where_there_is_room(device, host, options, offload, copies):
    placed = place_on(ModelConfig(**options), WEIGHTS, int(device * GIB), int(host * GIB))
    assert (placed.config.offload, placed.config.adapter_weights) == (offload, copies)
    assert f"53.7 GiB of weights; {device:.1f} GiB free on the device, {host:.1f} GiB of the host" in placed.why


@pytest.mark.parametrize(
    ("device", "host", "options", "message"),
    [
        (47, 40, {}, r"too little memory: streaming needs 57.7 GiB of the host and 6.5 GiB on the device, resident"),
        (5, 120, {}, r"too little memory: .*5.0 GiB free on the device, 120.0 GiB of the host"),
        (139, 200, {"offload": "stream", "device_memory_gib": 4}, r"too little memory: .*4.0 GiB free on the device"),
        (79, 24, {"offload": "stream"}, "too little memory: streaming needs 57.7 GiB of the host"),
        (24, 120, {"quantization": "fp8"}, "quantization: fp8 does not allow streaming them: remove it"),
        (24, 120, {"feature_cache": 0.1}, "feature_cache: 0.1 does not allow streaming them"),
        (24, 120, {"tiers": {"fast": {"feature_cache": 0.1}}}, "the feature_cache of a tier does not allow streaming"),
        (24, 120, {"prepare_ahead": True}, "prepare_ahead: true does not allow streaming them"),
        (24, 120, {"adapter_weights": "host"}, "adapter_weights: host does not allow streaming them"),
        (24, 120, {"gpus_per_replica": 2, "device": "cuda"}, "gpus_per_replica: 2 does not allow streaming them"),
    ],
)
def test_too_little_memory_is_refused_with_the_numbers(device, host, options, message):
    with pytest.raises(CheckpointRefused, match=message):
        place_on(ModelConfig(**options), WEIGHTS, int(device * GIB), int(host * GIB))


def test_compiled_blocks_without_room_for_a_copy_are_streamed_or_refused():
    assert place_on(ModelConfig(**COMPILED), WEIGHTS, 62 * GIB, 60 * GIB).config.offload == "none"
    assert place_on(ModelConfig(**COMPILED), WEIGHTS, 59 * GIB, 60 * GIB).config.offload == "stream"
    with pytest.raises(CheckpointRefused, match=r"compile: regional needs 45.9 GiB of the host .*: remove it"):
        place_on(ModelConfig(**COMPILED), WEIGHTS, 79 * GIB, 24 * GIB)
    assert place_on(ModelConfig(), WEIGHTS, 79 * GIB, 24 * GIB).config.adapter_weights == "hooks"


def test_weights_of_unknown_size_are_resident_and_measured_when_they_are_loaded():
    placed = place_on(ModelConfig(), dict.fromkeys(WEIGHTS, 0), 24 * GIB, 60 * GIB)
    assert (placed.config.offload, placed.config.adapter_weights) == ("none", "auto")


def test_auto_on_a_cpu_is_resident_and_a_card_is_asked_for_its_memory(monkeypatch):
    placed = place(ModelConfig(), WEIGHTS, CPU)
    assert (placed.config.offload, placed.why) == ("none", "on a CPU, host memory is the device's memory")
    free = {"cuda": 24 * GIB, "cpu": 100 * GIB}
    monkeypatch.setattr(placement, "free_memory", lambda device: free[device.type])
    assert place(ModelConfig(), WEIGHTS, torch.device("cuda")).config.offload == "stream"


def test_bytes_of_the_parts_are_those_of_the_loaded_weights():
    folder = miniature.checkpoint_folder(MODELS["qwen_image"])
    pipeline = checkpoint.read(folder, torch.bfloat16)
    assert checkpoint.weight_bytes(folder, torch.bfloat16) == {
        part: sum(p.nbytes for p in getattr(pipeline, part).parameters())
        for part in ("text_encoder", "transformer", "vae")
    }
