"""Which file a command line names as its config file, read as `serve` itself reads it."""

import pytest

from serve_app.replicas.config_folder import config_file_of


@pytest.mark.parametrize(
    ("words", "file"),
    [
        ("serve run a.yaml", "a.yaml"),
        ("serve run --runtime-env x.yaml a.yaml", "a.yaml"),
        ("serve run a.yaml --address local --runtime-env x.yaml", "a.yaml"),
        ("python -c code run --non-blocking a.yaml", "a.yaml"),
        ("serve run", None),
        ("serve deploy a.yaml", None),
        ("python -m ray.dashboard.agent --config x.yaml", None),
    ],
)
def test_the_config_file_of_a_command_line(words: str, file: str | None):
    assert config_file_of(words.split()) == file


def test_a_path_may_hold_any_character():
    assert config_file_of(["serve", "run", 'it\'s a "folder"/a.yaml']) == 'it\'s a "folder"/a.yaml'
