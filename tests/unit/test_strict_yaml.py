"""YAML in which a key stands twice is refused; all else is as YAML's safe loader has it."""

import pytest
import yaml

from serve_app.config import strict_yaml
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\na: 1\n", 2),
        ("a: 1\n'a': 2\n", 2),
        ("x:\n  - b: {c: 1, d: 2,\n      c: 3}\n", 3),
        ("1: a\n0x1: b\n", 2),
        ("<<: {a: 1}\nb: 1\nb: 2\n", 3),
        ("[1, 2]: a\n[1, 2]: b\n", None),
    ],
)
def test_duplicate_key_is_refused_with_its_place(text, line):
    with pytest.raises(yaml.YAMLError) as caught:
        strict_yaml.load(text)
    if line is not None:
        assert isinstance(caught.value, strict_yaml.DuplicateKey)
        assert caught.value.problem_mark.line + 1 == line


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: {b: 1}\nc: {b: 1}\n",
        "x: &x {a: 1, b: 2}\ny:\n  <<: *x\n  a: 3\n",
        "- {a: 1}\n- {a: 2}\n",
        "{1: a, '1': b}",
    ],
)
def test_other_yaml_is_read_as_usual(text):
    assert strict_yaml.load(text) == yaml.safe_load(text)


def test_python_tags_are_refused():
    with pytest.raises(yaml.YAMLError):
        strict_yaml.load("!!python/object/apply:os.getcwd []")


@pytest.mark.parametrize("file", sorted(ROOT.glob("**/serve_config*.yaml")), ids=str)
def test_shipped_configs_have_no_duplicate_keys(file):
    assert strict_yaml.load(file.read_text())["applications"]
