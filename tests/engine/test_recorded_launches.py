"""When a part of a shared forward is launched kernel by kernel, recorded and repeated. Recording itself needs a GPU."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from serve_app.models.registry import MODELS
from serve_app.pipeline import miniature, recorded_launches
from serve_app.pipeline.branches import Branches, copy_to_device
from serve_app.pipeline.fusion import clear_modulations, fuse, modulations, share_attention
from serve_app.pipeline.recorded_launches import Launches
from tests.conftest import THREADS
from tests.engine.pipelines import CPU

MODEL = MODELS["qwen_image_edit_plus_2511"]
TIMES = torch.tensor([1.0, 0.8, 0.6, 0.4])
SHAPES = [(1, 4, 4), (1, 4, 4)]


@pytest.fixture
def branches() -> Branches:
    first = miniature.make(MODEL).transformer
    share_attention(first)
    transformers = [first, copy_to_device(first, CPU)]
    for transformer in transformers:
        fuse(transformer, with_gelu=False)
    return Branches(transformers, THREADS)


@pytest.fixture
def seen(monkeypatch, branches) -> list[str]:
    """What the first device did in each step, with launches that take its CPU for a GPU."""
    found: list[str] = []
    launches = branches._launches[0]
    launches._device = torch.device("cuda")
    plain = Launches(CPU)

    def record(transformer, part, member) -> None:
        found.append("recorded")
        launches._graphs.append(None)
        plain.through(transformer, part, member)

    def repeat(part, member) -> None:
        found.append("repeated")
        plain.through(branches._transformers[0], part, member)

    def forget() -> None:
        found.append("plain")
        Launches._forget(launches)

    monkeypatch.setattr(launches, "_has_room", lambda part: True)
    monkeypatch.setattr(launches, "_record", record)
    monkeypatch.setattr(launches, "_repeat", repeat)
    monkeypatch.setattr(launches, "_forget", forget)
    return found


def steps(branches: Branches, indices: range, text: int = 9) -> None:
    hidden, prompt = torch.randn(1, 32, 64), torch.randn(1, text, 32)
    for index in indices:
        with torch.no_grad():
            branches.predict(hidden, TIMES, index, SHAPES, [prompt])


def end_of_image(branches: Branches) -> None:
    for transformer in branches._transformers:
        clear_modulations(transformer)


def test_second_step_of_an_image_is_recorded_and_later_ones_repeat_it(branches, seen):
    steps(branches, range(4))
    assert seen == ["plain", "recorded", "repeated", "repeated"]


def test_nothing_is_recorded_without_room(monkeypatch, branches, seen):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 1000))
    freed: list[torch.device] = []
    monkeypatch.setattr(recorded_launches, "free_cached_memory", freed.append)
    launches = branches._launches[0]
    monkeypatch.setattr(launches, "_has_room", partial(Launches._has_room, launches))
    steps(branches, range(3))
    assert seen == ["plain"]
    assert freed == [launches._device]


def after_a_whole_image(branches: Branches) -> None:
    steps(branches, range(4))
    end_of_image(branches)


def after_a_cancelled_image(branches: Branches) -> None:
    steps(branches, range(2))
    end_of_image(branches)


@pytest.mark.parametrize("before", [after_a_whole_image, after_a_cancelled_image])
@pytest.mark.parametrize("first", [0, 2])
def test_next_image_repeats_nothing_of_the_one_before(branches, seen, before: Callable, first: int):
    before(branches)
    if first:
        # Its earlier steps have two branches, one for each device: only later ones share a branch.
        hidden, prompt = torch.randn(1, 32, 64), torch.randn(1, 9, 32)
        with torch.no_grad():
            for index in range(first):
                branches.predict(hidden, TIMES, index, SHAPES, [prompt, prompt])
    seen.clear()
    steps(branches, range(first, first + 2))
    assert seen == ["plain", "recorded"]


def test_other_number_of_tokens_is_not_repeated(branches, seen):
    steps(branches, range(2))
    seen.clear()
    steps(branches, range(2, 3), text=11)
    assert seen == ["plain"]


def test_modulations_keep_their_place_in_all_steps_of_an_image(branches):
    places = []
    for index in range(4):
        steps(branches, range(index, index + 1))
        places.append([m.now.data_ptr() for t in branches._transformers for m in modulations(t)])
        # They are those of the step nevertheless.
        for modulation in modulations(branches._transformers[0]):
            assert torch.equal(modulation.now, modulation.of_steps[index])
    assert places == [places[0]] * 4
