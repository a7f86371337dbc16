"""Which training jobs there are below a LoRA root, and which files belong to each."""

import os
from pathlib import Path

import fsspec
import pytest

from serve_app.adapters import lora_root
from serve_app.adapters.lora_root import LoraRoot
from serve_app.errors import LoraNotFound, LoraPathForbidden, TrainingJobNotFound
from serve_app.training import folders
from serve_app.training.folders import TrainingFolders, control_image_candidates
from tests.training_folder import (
    FIRST_TIME_MS,
    checkpoint_name,
    sample_name,
    trainer_config,
    write_checkpoints,
    write_config,
    write_sample_image,
)
from tests.unit.conftest import safetensors_bytes


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The folder of a job with all its files."""
    folder = tmp_path / "people/my_job"
    write_config(folder, trainer_config(sample={"prompts": ["a cat", "a dog"]}))
    write_checkpoints(folder, safetensors_bytes(), (250, 1000, None))
    for step in (0, 250):
        for number in (0, 1):
            write_sample_image(folder, sample_name(step, number, time_ms=FIRST_TIME_MS + number))
    return folder


@pytest.fixture
def training(tmp_path: Path) -> TrainingFolders:
    return TrainingFolders(LoraRoot(str(tmp_path)))


def test_job_with_its_files(job, training):
    [found] = training.jobs()
    assert found == training.job("people/my_job")
    assert (found.name, found.model, found.trigger_word, found.problem) == (
        "people/my_job",
        "qwen_image_edit",
        "sks",
        None,
    )
    assert [(each.path, each.step) for each in found.weights] == [
        ("people/my_job/my_job_000000250.safetensors", 250),
        ("people/my_job/my_job_000001000.safetensors", 1000),
        ("people/my_job/my_job.safetensors", 500),
    ]
    assert [(each.step, each.number) for each in found.sample_images] == [(0, 0), (0, 1), (250, 0), (250, 1)]
    assert [sample.prompt for sample in found.samples] == ["a cat", "a dog"]


def test_files_from_one_step_to_another(job, training):
    [found] = training.jobs()
    assert [each.step for each in found.between(250, 500)] == [250, 500]
    assert [each.step for each in found.between(first=300)] == [1000, 500]
    assert found.between(251, 499) == ()


def test_names_of_a_named_lora(tmp_path, training):
    write_checkpoints(tmp_path / "my_job", b"", (250, None), named=True)
    [found] = training.jobs()
    assert [each.path for each in found.weights] == [
        "my_job/my_job_LoRA_000000250.safetensors",
        "my_job/my_job_LoRA.safetensors",
    ]


@pytest.mark.parametrize("name", ["my_job.safetensors", "my_job_LoRA.safetensors"])
def test_final_file_is_found_without_any_checkpoint(tmp_path, training, name):
    write_config(tmp_path / "renamed", trainer_config("my_job"))
    for each in (name, "other.safetensors"):
        (tmp_path / "renamed" / each).write_bytes(b"")
    [found] = training.jobs()
    assert (found.final.path, found.checkpoints) == (f"renamed/{name}", ())


def test_folder_may_be_renamed(tmp_path, training):
    folder = tmp_path / "renamed"
    write_config(folder, trainer_config("my_job"))
    for step in (250, None):
        (folder / checkpoint_name("my_job", step)).write_bytes(b"")
    (folder / "other.safetensors").write_bytes(b"")
    [found] = training.jobs()
    assert found.final.path == "renamed/my_job.safetensors"


@pytest.mark.parametrize("count", [9, 10, 100])
def test_number_of_a_sample_is_padded_only_if_there_are_ten(tmp_path, training, count):
    for number in range(count):
        write_sample_image(tmp_path / "my_job", sample_name(0, number, count=count))
    assert [image.number for image in training.job("my_job").sample_images] == list(range(count))


def test_images_of_a_repeated_step_are_the_newest(tmp_path, training):
    for time_ms in (FIRST_TIME_MS + 5, FIRST_TIME_MS, FIRST_TIME_MS + 3):
        write_sample_image(tmp_path / "my_job", sample_name(250, 0, time_ms=time_ms))
    [image] = training.job("my_job").sample_images
    assert image.time_ms == FIRST_TIME_MS + 5


def test_names_that_the_trainer_does_not_write_are_no_samples(tmp_path, training):
    good = sample_name(250, 0, suffix="png")
    for name in (
        good,
        "cat.jpg",
        "1724085406830_000000250_0.jpg",
        "1__250_0.jpg",
        good + ".part",
        "1__000000250_0.mp4",
    ):
        write_sample_image(tmp_path / "my_job", name)
    assert [image.name for image in training.job("my_job").sample_images] == [good]


def test_samples_in_the_making_and_thumbnails_are_not_listed(tmp_path, training):
    write_sample_image(tmp_path / "my_job", sample_name(0, 0))
    for hidden in (".tmp", ".thumbs"):
        write_sample_image(tmp_path / "my_job/samples" / hidden, sample_name(250, 0))
        write_sample_image(tmp_path / "my_job/samples", f"{hidden}/{sample_name(500, 0)}")
    [found] = training.jobs()
    assert [image.step for image in found.sample_images] == [0]


def test_step_whose_checkpoint_was_deleted_keeps_its_images(job, training):
    (job / "my_job_000000250.safetensors").unlink()
    found = training.job("people/my_job")
    assert found.between(250, 250) == ()
    assert set(found.images_of(250)) == {0, 1}


@pytest.mark.parametrize("config", ["", 'config: {name: "my', "model: resnet", "config: {process: [{sample: 3}]}"])
def test_folder_whose_config_cannot_be_used_is_a_job_with_a_problem(tmp_path, training, config):
    write_checkpoints(tmp_path / "my_job", b"", (250,))
    (tmp_path / "my_job/config.yaml").write_text(config)
    [found] = training.jobs()
    assert [each.step for each in found.checkpoints] == [250]
    assert found.samples == ()


def test_config_of_another_program_makes_no_job(tmp_path, training):
    folder = tmp_path / "resnet"
    folder.mkdir()
    (folder / "config.yaml").write_text("model: resnet")
    (folder / "resnet.safetensors").write_bytes(b"")
    assert list(training.jobs()) == []


def test_config_is_read_again_only_when_it_has_changed(job, training, monkeypatch):
    reads = []
    read = folders.read_settings
    monkeypatch.setattr(folders, "read_settings", lambda data: reads.append(data) or read(data))
    for _ in range(3):
        assert training.job("people/my_job").trigger_word == "sks"
    assert len(reads) == 1
    write_config(job, trainer_config(trigger_word="another"))
    assert training.job("people/my_job").trigger_word == "another"
    assert len(reads) == 2


def test_folder_that_cannot_be_read_takes_no_other_away(job, tmp_path, training, monkeypatch):
    write_checkpoints(tmp_path / "another", b"", (250,))
    write_config(tmp_path / "another", trainer_config("another"))
    read = folders.read_settings

    def fail(data: bytes):
        if b"another" in data:
            raise ZeroDivisionError
        return read(data)

    monkeypatch.setattr(folders, "read_settings", fail)
    first, second = training.jobs()
    assert (first.name, second.name) == ("another", "people/my_job")
    assert "could not be read" in first.problem


@pytest.mark.parametrize("name", [b"my\xffjob", b"my\njob"])
def test_folder_whose_name_is_no_text_is_left_out(job, tmp_path, training, name):
    folder = os.fsencode(tmp_path) + b"/" + name
    os.mkdir(folder)  # noqa: PTH102 - a path of bytes
    for file in (b"a_000000250.safetensors", b"config.yaml"):
        os.close(os.open(folder + b"/" + file, os.O_CREAT))
    assert [each.name for each in training.jobs()] == ["people/my_job"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "people", "people/", "./people/my_job", "people//my_job", "/etc", "a\0b", "x" * 900]
)
def test_other_names_are_no_jobs(job, training, name):
    with pytest.raises(TrainingJobNotFound):
        training.job(name)


def test_folder_outside_of_the_root_is_not_found(job, tmp_path):
    with pytest.raises(TrainingJobNotFound):
        TrainingFolders(LoraRoot(str(job.parent / "my_job/samples"))).job("../../my_job")
    link = tmp_path / "root/link"
    link.parent.mkdir()
    link.symlink_to(job)
    training = TrainingFolders(LoraRoot(str(link.parent)))
    assert list(training.jobs()) == []
    with pytest.raises(TrainingJobNotFound):
        training.job("link")


def test_file_outside_of_the_root_is_not_read(job, tmp_path):
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes(safetensors_bytes())
    (job / "my_job_000000750.safetensors").symlink_to(secret)
    (job / "my_job_000000800.safetensors").symlink_to(job / "nothing")
    training = TrainingFolders(LoraRoot(str(job.parent)))
    found = training.job("my_job")
    with pytest.raises(LoraPathForbidden):
        training.file(found.between(750, 750)[0])
    with pytest.raises(LoraNotFound):
        training.file(found.between(800, 800)[0])


def test_links_in_a_circle_end(job, training):
    (job / "again").symlink_to(job)
    assert [each.name for each in training.jobs()] == ["people/my_job"]


def test_folders_below_a_limit_of_depth_are_left_out(tmp_path, training, monkeypatch):
    monkeypatch.setattr(lora_root, "MAX_DEPTH", 2)
    for folder in ("a/b", "a/b/c"):
        write_checkpoints(tmp_path / folder, b"", (250,))
    assert [each.name for each in training.jobs()] == ["a/b"]


def test_folder_that_may_not_be_read_is_left_out(job, tmp_path, training, monkeypatch):
    closed, scandir = tmp_path / "closed", os.scandir
    closed.mkdir()
    refused = []

    def only_open(path):
        # The system refuses nothing to root.
        if Path(path) == closed:
            refused.append(path)
            raise PermissionError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", only_open)
    assert len(list(training.jobs())) == 1
    assert refused


def test_root_may_be_in_any_store(job, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), "/lora_root", recursive=True)
    try:
        training = TrainingFolders(LoraRoot("memory://lora_root"))
        [found] = training.jobs()
        assert found.name == "people/my_job"
        assert [each.step for each in found.weights] == [250, 1000, 500]
        assert training.file(found.final).size_bytes == (job / "my_job.safetensors").stat().st_size
        assert training.job("people/my_job") == found
        with pytest.raises(TrainingJobNotFound):
            training.job("people/another")
    finally:
        memory.rm("/lora_root", recursive=True)


def test_images_that_may_be_control_images(job, tmp_path):
    write_sample_image(job, "cat.png")
    (tmp_path / "control").mkdir()
    (tmp_path / "control/cat.png").write_bytes(b"")
    (tmp_path / "control/notes.txt").write_bytes(b"")
    found = control_image_candidates(LoraRoot(str(tmp_path)).listing())
    assert {name: sorted(paths) for name, paths in found.items()} == {
        "cat.png": ["control/cat.png", "people/my_job/samples/cat.png"]
    }
