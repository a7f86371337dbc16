"""How far this machine's images are from those that the real trainer and reference server made.

python -m benchmarks.goldens [FOLDER]     # default: ../shared/goldens
"""

import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image

from serve_app.config import ModelConfig
from serve_app.engine.engine import Engine
from serve_app.tasks import EditPlan

CHECKPOINTS = {"qwen_image_edit": "checkpoint", "qwen_image_edit_plus": "checkpoint-plus"}


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/goldens")
    engines = {
        model: Engine.load(ModelConfig(id=model, checkpoint=str(folder / name), threads=2, device="cpu"))
        for model, name in CHECKPOINTS.items()
    }
    print("| case | profile | values that differ | of | by at most |\n|---|---|---|---|---|")
    for case in json.loads((folder / "cases.json").read_text()):
        controls = [(folder / f"{case['id']}.ctrl{i + 1}.png").read_bytes() for i in range(len(case["ctrl"]))]
        for profile in ("reference", "trainer"):
            plan = EditPlan(
                model=case["model"],
                profile=profile,
                prompt=case["prompt"],
                negative_prompt=case["neg"],
                width=case["w"],
                height=case["h"],
                steps=case["steps"],
                guidance_scale=case["cfg"],
                seed=case["seed"],
                output_format="png",
                control_images=("",) * len(controls),
            )
            made = np.asarray(engines[case["model"]].edit(plan, controls).image).astype(int)
            golden = np.asarray(PIL.Image.open(folder / f"{case['id']}.{profile}.png").convert("RGB")).astype(int)
            apart = np.abs(made - golden)
            print(f"| {case['id']} | {profile} | {(apart > 0).sum()} | {apart.size:,} | {apart.max()} |")


if __name__ == "__main__":
    main()
