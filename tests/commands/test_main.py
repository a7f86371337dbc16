"""The command line of `edits-server`: its sub-commands, and what starting it imports."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT, edits_server


def test_help_names_every_command(capsys):
    assert edits_server("--help") == 0
    out = capsys.readouterr().out
    for command in ("run", "verify", "compare", "demo", "keys"):
        assert f" {command} " in out


def test_the_command_line_imports_neither_torch_nor_ray():
    code = "import sys, serve_app.commands.main; print(*({'ray', 'torch', 'numpy', 'fastapi'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


@pytest.mark.parametrize("command", [["demo"], ["verify", "miniature"]])
def test_unknown_model_is_a_usage_error_that_names_the_models(command, capsys):
    assert edits_server(*command, "--model", "no_such_model") == 2
    assert "qwen_image_edit_plus" in capsys.readouterr().err
