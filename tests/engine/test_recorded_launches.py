"""When a part of a shared forward is launched kernel by kernel, recorded and repeated. Recording itself needs a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from serve_app.errors import DeviceLost
from serve_app.models.registry import MODELS
from serve_app.pipeline import miniature, recorded_launches
from serve_app.pipeline.branches import Branches, copy_to_device
from serve_app.pipeline.device import freeing
from serve_app.pipeline.fusion import fuse, modulations, share_attention
from serve_app.pipeline.recorded_launches import Launches
from tests.conftest import THREADS
from tests.engine.pipelines import CPU, run_out_of_memory_once

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
        Launches.forget(launches)

    monkeypatch.setattr(launches, "_has_room", lambda part: True)
    monkeypatch.setattr(launches, "_record", record)
    monkeypatch.setattr(launches, "_repeat", repeat)
    monkeypatch.setattr(launches, "forget", forget)
    return found


def steps(branches: Branches, indices: range, text: int = 9) -> None:
    hidden, prompt = torch.randn(1, 32, 64), torch.randn(1, text, 32)
    for index in indices:
        with torch.no_grad():
            branches.predict(hidden, TIMES, index, SHAPES, [prompt])


class FakeCuda:
    """What `Launches` uses of torch.cuda, on a CPU: recording computes at once, and launching does nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.current = "default"
        self.refuses_to_end = False
        fake = self

        class Stream:
            def __init__(self, name: str = "own") -> None:
                self.name = name

            def wait_stream(self, other: "Stream") -> None:
                fake.log.append(f"{self.name} waits for {other.name}")

            def synchronize(self) -> None:
                fake.log.append(f"{self.name} is complete")

        class Graph:
            def capture_begin(self, **options: object) -> None:
                self.began = fake.current
                fake.log.append(f"begin on {fake.current}")

            def capture_end(self) -> None:
                if fake.current != self.began or fake.refuses_to_end:
                    raise RuntimeError("Capture must end on the same stream it began on.")
                fake.log.append("end")

            def replay(self) -> None:
                fake.log.append("launch")

        @contextmanager
        def stream(which: Stream) -> Iterator[None]:
            before, fake.current = fake.current, which.name
            try:
                yield
            finally:
                fake.current = before

        replaced = {"CUDAGraph": Graph, "stream": stream, "current_stream": lambda device: Stream("default")}
        replaced |= {"graph_pool_handle": lambda: (0, 1), "mem_get_info": lambda device: (2**40, 2**40)}
        for name, value in replaced.items():
            monkeypatch.setattr(torch.cuda, name, value)
        self.stream = Stream()


@pytest.fixture
def cuda(monkeypatch, branches) -> FakeCuda:
    found = FakeCuda(monkeypatch)
    launches = branches._launches[0]
    launches._device, launches._stream = torch.device("cuda"), found.stream
    return found


def test_a_recording_is_cut_at_each_exchange(branches, cuda):
    blocks = len(branches._transformers[0].transformer_blocks)
    steps(branches, range(2))
    assert cuda.log == [
        *("own waits for default", *["begin on own", "end", "launch"] * (blocks + 1), "default waits for own")
    ]
    assert not freeing.locked()


@pytest.mark.parametrize("device", [0, 1])
def test_an_error_ends_the_recording(branches, cuda, device: int):
    steps(branches, range(1))
    run_out_of_memory_once(branches._transformers[device].transformer_blocks[0].img_mlp)
    with pytest.raises(torch.OutOfMemoryError):
        steps(branches, range(1, 2))
    assert cuda.log.count("begin on own") == cuda.log.count("end")
    assert cuda.log[-1] == "own is complete"
    assert not freeing.locked()
    branches.end()
    cuda.log.clear()
    steps(branches, range(2))
    assert cuda.log[-1] == "default waits for own"


def test_a_recording_that_cannot_be_ended_loses_the_device(branches, cuda):
    steps(branches, range(1))
    run_out_of_memory_once(branches._transformers[0].transformer_blocks[0].img_mlp)
    cuda.refuses_to_end = True
    with pytest.raises(DeviceLost):
        steps(branches, range(1, 2))
    assert not freeing.locked()


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
    branches.end()


def after_a_cancelled_image(branches: Branches) -> None:
    steps(branches, range(2))
    branches.end()


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
