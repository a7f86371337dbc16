"""One edit in this process, without Ray: seconds by stage, and the device's peak memory.

python benchmarks/engine_edit.py                                    # the miniature, 1024x1024, 25 steps
python benchmarks/engine_edit.py --size 512 --steps 8
python benchmarks/engine_edit.py --checkpoint Qwen/Qwen-Image-Edit --device cuda
"""

import argparse
from pathlib import Path

from serve_app.adapters.sources import fingerprint
from serve_app.config import ModelConfig
from serve_app.engine.engine import Engine
from serve_app.tasks import AdapterUse, EditPlan

ROOT = Path(__file__).parent.parent
LORA = ROOT / "samples/loras/my_lora_job/my_lora.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="miniature")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--size", type=int, default=1024, help="width and height in pixels")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--lora", type=Path, help="default: the sample, which fits the miniature alone")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    lora = arguments.lora or (LORA if arguments.checkpoint == "miniature" else None)
    uses = (AdapterUse(fingerprint(str(lora)), lora.name, str(lora), 1.0),) if lora else ()
    engine = Engine.load(ModelConfig(checkpoint=arguments.checkpoint, device=arguments.device))
    plan = EditPlan(
        model="qwen_image_edit",
        profile="reference",
        prompt="sks a photo of a person",
        negative_prompt="",
        width=arguments.size,
        height=arguments.size,
        steps=arguments.steps,
        guidance_scale=4.0,
        seed=42,
        output_format="jpeg",
        control_images=("",),
        adapters=uses,
    )
    photograph = (ROOT / "samples/astronaut.jpg").read_bytes()
    for run in range(arguments.runs):
        edited = engine.edit(plan, [photograph])
        stages = "  ".join(f"{stage} {seconds:.3f}" for stage, seconds in edited.timings.items())
        print(f"run {run}: {stages}")
    print({"forwards": edited.effective["forwards"]} | edited.runtime)


if __name__ == "__main__":
    main()
