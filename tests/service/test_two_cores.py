"""What a machine of two cores has room for."""

import os
import subprocess
import sys

from tests.conftest import ROOT


def test_two_models_start_on_two_cores_and_what_does_not_fit_is_named(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
    command = [sys.executable, "-m", "tests.service.two_cores", str(tmp_path)]
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout.splitlines()[-1]
    # With editors of a core each there is none left for the ingresses.
    assert "Each asks for 0.25 CPU, and no machine has that free" in said
    assert "Editor-qwen_image_edit has 1, Editor-qwen_image has 1" in said
