"""A branch whose tokens several devices share: the predictions of one device, for any lengths and any number."""

import pytest
import torch
from torch._dynamo.utils import counters

from serve_app.models.registry import MODELS
from serve_app.pipeline import miniature
from serve_app.pipeline.acceleration import compile_blocks, configure_thread
from serve_app.pipeline.branches import Branches, copy_to_device
from serve_app.pipeline.fusion import clear_modulations, fuse, share_attention
from serve_app.pipeline.sequence_parallel import split
from tests.conftest import THREADS
from tests.engine.pipelines import CPU, GRAPHS, run_out_of_memory_once

# The edit model whose control images are at another time than the target.
MODEL = MODELS["qwen_image_edit_plus_2511"]
TIMES = torch.tensor([1.0, 0.6, 0.2])
# A target and two control images: 63 tokens, which none of the numbers of devices divides.
SHAPES = [(1, 5, 6), (1, 4, 6), (1, 3, 3)]
COUNTS = (2, 3, 4, 8)


def transformers(count: int) -> list:
    first = miniature.make(MODEL).transformer
    if count > 1:
        share_attention(first)
    return [first, *(copy_to_device(first, CPU) for _ in range(count - 1))]


def predictions(branches: Branches, shapes: list, prompts: list[int]) -> list[torch.Tensor]:
    """The predictions of all steps for prompts of these lengths."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn((1, sum(rows * columns for _, rows, columns in shapes), 64), generator=generator)
    texts = [torch.randn((1, length, 32), generator=generator) for length in prompts]
    with torch.no_grad():
        return [each for step in range(len(TIMES)) for each in branches.predict(hidden, TIMES, step, shapes, texts)]


def error(made: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest difference, relative to the largest value."""
    assert [each.shape for each in made] == [each.shape for each in expected]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(made, expected, strict=True))


@pytest.fixture(autouse=True)
def threads() -> None:
    configure_thread(THREADS)


@pytest.fixture(scope="module")
def alone() -> Branches:
    return Branches(transformers(1), THREADS)


@pytest.fixture(scope="module", params=COUNTS)
def shared(request) -> Branches:
    return Branches(transformers(request.param), THREADS)


# 8 devices share a prompt of 7 tokens and one of 2.
@pytest.mark.parametrize("prompts", [[21], [7, 13], [2]])
def test_devices_that_share_a_branch_predict_what_one_does(alone, shared, prompts):
    assert error(predictions(shared, SHAPES, prompts), predictions(alone, SHAPES, prompts)) < 1e-5


def test_fused_blocks_share_a_branch_as_well(alone):
    found = transformers(4)
    for transformer in found:
        fuse(transformer, with_gelu=False)
    made = predictions(Branches(found, THREADS), SHAPES, [21])
    assert error(made, predictions(alone, SHAPES, [21])) < 1e-4
    for transformer in found:
        clear_modulations(transformer)


@pytest.mark.parametrize("tokens", [2, 5, 63, 8192])
@pytest.mark.parametrize("count", COUNTS)
def test_parts_are_of_equal_length_and_cover_each_token_once(tokens, count):
    parts = split(tokens, count)
    lengths = {part.computed.stop - part.computed.start for part in parts}
    assert len(lengths) == 1
    assert min(lengths) >= 2
    assert [row for part in parts for row in range(tokens)[part.own]] == list(range(tokens))
    assert all(part.computed.start >= 0 and part.computed.stop <= tokens for part in parts)
    assert all(range(tokens)[part.computed][part.own_of_computed] == range(tokens)[part.own] for part in parts)


def test_every_device_computes_its_part_only():
    found, seen = transformers(4), []
    for transformer in found:
        transformer.img_in.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    predictions(Branches(found, THREADS), SHAPES, [21])
    assert seen == [16] * 4 * len(TIMES)
    seen.clear()
    predictions(Branches(found, THREADS), SHAPES, [21, 9])
    assert seen == [32] * 4 * len(TIMES)


def test_graphs_of_the_warm_up_serve_whole_branches_and_shared_ones():
    torch._dynamo.reset()
    counters.clear()
    found = transformers(2)
    for transformer in found:
        compile_blocks(transformer, "eager")
    branches = Branches(found, THREADS)
    expected = Branches(transformers(1), THREADS)
    # The warm-up of an editor: steps with two branches, and steps with one.
    for prompts in ([21, 9], [30]):
        predictions(branches, SHAPES, prompts)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs <= 2 * GRAPHS
    for shapes, prompts in ((SHAPES, [33]), (SHAPES[:2], [8, 8]), (SHAPES[1:], [12])):
        assert error(predictions(branches, shapes, prompts), predictions(expected, shapes, prompts)) < 1e-4
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_device_that_fails_does_not_leave_the_others_waiting(failing):
    found = transformers(4)
    branches = Branches(found, THREADS)
    run_out_of_memory_once(found[failing].transformer_blocks[1].img_mlp)
    with pytest.raises(torch.OutOfMemoryError):
        predictions(branches, SHAPES, [21])
    assert len(predictions(branches, SHAPES, [21])) == len(TIMES)


def test_feature_cache_keeps_a_branch_on_one_device():
    from diffusers import FirstBlockCacheConfig

    found, seen = transformers(4), []
    for transformer in found:
        transformer.enable_cache(FirstBlockCacheConfig(0.01))
        transformer.img_in.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    predictions(Branches(found, THREADS), SHAPES, [21, 9])
    assert seen == [63] * 2 * len(TIMES)
