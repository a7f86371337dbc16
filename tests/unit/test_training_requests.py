"""Which control images a model sees, and which files the paths of the training machine mean."""

import pytest

from serve_app.models.registry import MODELS
from serve_app.training.requests import control_paths, file_name, find_image
from serve_app.training.samples import Sample

EVERY_KEY = (("ctrl_img", "a"), ("ctrl_img_1", "b"), ("ctrl_img_2", "c"), ("ctrl_img_3", "d"))


@pytest.mark.parametrize(
    ("model", "images", "seen"),
    [
        ("qwen_image_edit", (("ctrl_img", "a"),), ["a"]),
        ("qwen_image_edit", (("ctrl_img_1", "b"),), ["b"]),
        ("qwen_image_edit", EVERY_KEY, ["a"]),
        ("qwen_image_edit_plus", (("ctrl_img", "a"),), ["a"]),
        ("qwen_image_edit_plus", (("ctrl_img", "a"), ("ctrl_img_2", "c")), ["a", "c"]),
        ("qwen_image_edit_plus", EVERY_KEY, ["b", "c", "d"]),
        ("qwen_image_edit_plus", (), []),
        ("qwen_image", EVERY_KEY, []),
    ],
)
def test_ctrl_img_counts_as_the_first_where_that_is_absent(model, images, seen):
    assert control_paths(Sample(0, control_images=images), MODELS[model]) == seen


@pytest.mark.parametrize(
    ("path", "stored", "found"),
    [
        ("/home/me/control/cat.png", ["control/cat.png"], "control/cat.png"),
        ("control/cat.png", ["anywhere/cat.png"], "anywhere/cat.png"),
        ("C:\\Users\\me\\cat.png", ["cat.png"], "cat.png"),
        # One in the job's own folder, whatever else there is.
        ("/home/me/control/cat.png", ["control/cat.png", "my_job/cat.png"], "my_job/cat.png"),
        # The folder's name is only the beginning of another's.
        ("/home/me/cat.png", ["my_job_2/cat.png", "my_job/cat.png"], "my_job/cat.png"),
        # The one with most of the path's last folders.
        ("/home/me/a/control/cat.png", ["b/control/cat.png", "a/control/cat.png", "cat.png"], "a/control/cat.png"),
        # Nothing tells these apart.
        ("/home/me/cat.png", ["a/cat.png", "b/cat.png"], None),
        ("/home/me/dog.png", ["cat.png"], None),
        ("/", ["cat.png"], None),
        ("", ["cat.png"], None),
        ("../../cat.png/..", ["cat.png"], None),
    ],
)
def test_file_of_a_control_image(path, stored, found):
    candidates: dict[str, list[str]] = {}
    for each in stored:
        candidates.setdefault(each.rpartition("/")[2], []).append(each)
    assert find_image(path, "my_job", candidates) == found


def test_name_of_a_file_on_either_system():
    assert file_name("/home/me/cat.png") == file_name("C:\\me\\cat.png") == file_name("cat.png") == "cat.png"
