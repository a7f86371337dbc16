"""Control images are resized on a CPU while the device encodes the prompts."""

import threading

from serve_app.config import ModelConfig
from serve_app.engine.torch_engine import TorchEngine
from serve_app.pipeline import conditioning
from tests.conftest import THREADS
from tests.engine.pipelines import EDIT, own_pipeline


def test_control_image_is_resized_while_the_prompt_is_encoded(monkeypatch, make_plan, control_png):
    resized, during_encoding = threading.Event(), []
    encode_prompt, control_pixels = conditioning.encode_prompt, conditioning.control_pixels

    def encode(*inputs):
        during_encoding.append(resized.wait(30))
        return encode_prompt(*inputs)

    def resize(*inputs):
        resized.set()
        return control_pixels(*inputs)

    monkeypatch.setattr(conditioning, "encode_prompt", encode)
    monkeypatch.setattr(conditioning, "control_pixels", resize)
    engine = TorchEngine(own_pipeline(EDIT), EDIT, ModelConfig(threads=THREADS))
    plan = make_plan(model=EDIT.id, guidance_scale=1.0, steps=1)
    engine.edit(plan, [control_png])
    assert during_encoding == [True]
    resized.clear()
    engine.edit(plan, [control_png])
    assert not resized.is_set(), "the latents are cached"
