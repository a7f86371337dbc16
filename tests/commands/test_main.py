"""The command line of `edits-server`: its sub-commands, and what starting it imports."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT, edits_server


def imported(module: str, *names: str) -> str:
    """Those of `names` that a new process imports with `module`."""
    code = f"import sys, {module}; print(*({set(names)} & set(sys.modules)))"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_help_names_every_command(capsys):
    assert edits_server("--help") == 0
    out = capsys.readouterr().out
    for command in ("run", "verify", "calibrate", "compare", "demo", "keys"):
        assert f" {command} " in out


def test_the_command_line_imports_neither_torch_nor_ray():
    assert imported("serve_app.commands.main", "ray", "torch", "numpy", "fastapi") == ""


def test_what_calibrate_is_told_is_checked_without_torch():
    """Typing errors come in a second: torch is imported when the first image is made."""
    assert imported("serve_app.commands.calibrate", "ray", "torch", "diffusers") == ""


def test_commands_show_no_warnings_of_imports():
    code = "from serve_app.commands.main import edits_server; edits_server()\n"
    code += "import diffusers.quantizers.torchao.torchao_quantizer"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stderr == ""


@pytest.mark.parametrize("command", [["demo"], ["verify", "miniature"]])
def test_unknown_model_is_a_usage_error_that_names_the_models(command, capsys):
    assert edits_server(*command, "--model", "no_such_model") == 2
    assert "qwen_image_edit_plus" in capsys.readouterr().err
