"""The shipped default through HTTP and Ray: a replica finds the trained miniature and its LoRA.

tests/engine/test_trained.py shows what they can do.
"""

import numpy as np

from tests.conftest import ROOT, THREADS
from tests.service.conftest import pixels

LORA = "my_lora_job/my_lora.safetensors"


def test_shipped_checkpoint_and_lora_are_served(deploy, make_body):
    trained = deploy("trained", models=[{"threads": THREADS, "device": "cpu"}], lora_root=str(ROOT / "samples/loras"))
    made = []
    for multiplier in (0.0, 1.0):
        loras = [{"path": LORA, "network_multiplier": multiplier}]
        body = make_body(sample_steps=1, guidance_scale=1.0, loras=loras, output_format="png")
        made.append(pixels(trained.edit(body)[1]))
    assert not np.array_equal(*made)
