"""What an ingress process holds: never torch, which costs seconds of start and half a gigabyte."""

import subprocess
import sys


def test_ingress_side_imports_neither_torch_nor_diffusers():
    program = (
        "import sys, serve_app.app, serve_app.api.app, serve_app.replicas.editor\n"
        "print([name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
