"""The next edit prepared on the device while the current one runs: the same images, and nothing left to encode."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from serve_app.config import ModelConfig
from serve_app.engine.torch_engine import TorchEngine
from serve_app.models.registry import MODELS
from tests.conftest import THREADS, as_png, noise_image
from tests.engine.pipelines import own_pipeline, use

# Its vision encoder sees a small image.
MODEL = MODELS["qwen_image_edit_plus"]


@pytest.fixture(scope="module")
def ahead() -> TorchEngine:
    return TorchEngine(own_pipeline(MODEL), MODEL, ModelConfig(threads=THREADS, prepare_ahead=True))


@pytest.fixture
def encodings(ahead):
    """Counts the forwards of the text encoder."""
    calls = []
    hook = ahead._pipeline.text_encoder.model.register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


def test_edits_prepared_during_other_edits_give_the_same_images(ahead, bench, make_plan, loras, encodings):
    edits = [
        (
            make_plan(model=MODEL.id, steps=1, seed=seed, prompt=f"image {seed}", adapters=uses),
            as_png(noise_image(64, 48, seed)),
        )
        for seed, uses in enumerate([(use(loras[0]),), (use(loras[1], 0.5), use(loras[0])), ()])
    ]
    images = []
    with ThreadPoolExecutor(1) as other_thread:
        prepared = other_thread.submit(ahead.prepare, edits[0][0], [edits[0][1]]).result()
        for following in [*edits[1:], None]:
            coming = None

            def begin(step: int, preview: object, following=following) -> None:
                nonlocal coming
                if step == 0 and following is not None:
                    coming = other_thread.submit(ahead.prepare, following[0], [following[1]])

            images.append(ahead.run(prepared, begin))
            prepared = coming.result() if coming else None
    assert len(encodings) == 2 * len(edits)
    for (plan, control), made in zip(edits, images, strict=True):
        assert np.array_equal(np.asarray(made.image), np.asarray(bench(MODEL.id).engine.edit(plan, [control]).image))
        assert {"encode_prompt", "encode_control", "copy_adapters", "denoise"} <= made.timings.keys()


def test_running_a_prepared_edit_encodes_nothing(ahead, make_plan, control_png, encodings):
    prepared = ahead.prepare(make_plan(model=MODEL.id, prompt="something new"), [control_png])
    encoded = len(encodings)
    ahead.run(prepared)
    assert encoded == len(encodings) == 2


def test_edit_without_memory_for_its_preparation_is_made_in_its_turn(ahead, make_plan, control_png, encodings):
    def fail(*_: object) -> None:
        hook.remove()
        raise torch.OutOfMemoryError("no memory")

    hook = ahead._pipeline.text_encoder.model.register_forward_pre_hook(fail)
    plan = make_plan(model=MODEL.id, prompt="something else")
    prepared = ahead.prepare(plan, [control_png])
    assert prepared.conditions is None
    first = ahead.run(prepared)
    assert np.array_equal(np.asarray(first.image), np.asarray(ahead.edit(plan, [control_png]).image))
