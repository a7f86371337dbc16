"""Train the miniature checkpoint and its three LoRAs, on one GPU, in at most 25 minutes.

The photographs come out of packages' wheels, which have to be downloaded first (see
serve_app/pipeline/miniature_files/README.md):

    python -m tools.train_miniature --wheels wheels --out out/miniature

Each phase ends by the clock and writes what it has; `--phases` runs some of them on what the others left.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch
from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline
from torch import Tensor

from serve_app.config import ModelConfig
from serve_app.engine.torch_engine import TorchEngine
from serve_app.pipeline import checkpoint
from tools.miniature import crops, edits, evaluation, flow_training, pairs, parts, photographs, style_training
from tools.miniature import vae_training as vaes
from tools.miniature.clock import Log

SEED = 20261125
PHASES = ("vae", "transformer", "loras", "evaluate")
# Tokens at the end of a prompt's embeddings that are not the image's, with room to spare.
WORDS = 20
EDIT, EDIT_PLUS = "qwen_image_edit", "qwen_image_edit_plus"


@dataclass(frozen=True)
class Scale:
    """How much is made of everything: seconds of a phase, images of a bank by side, images of a step."""

    vae_s: float = 330
    transformer_s: float = 420
    lora_s: float = 50
    vae_bank: int = 1536
    vae_batch: int = 32
    banks: tuple[tuple[int, int], ...] = ((256, 2560), (512, 640), (1024, 160))
    batches: tuple[int, ...] = (48, 20, 8)
    style_banks: tuple[int, ...] = (512, 128, 32)


# To see on a CPU, in a minute or two, that every phase runs.
TRIAL = Scale(20, 20, 5, 12, 4, ((64, 12), (128, 8), (256, 4)), (4, 2, 1), (6, 4, 2))


class Training:
    """The phases, in order; what one leaves for the next lies in `out`."""

    def __init__(self, out: Path, pictures: Path, scale: Scale, device: torch.device) -> None:
        self.out, self.scale, self.device = out, scale, device
        self.checkpoint, self.loras = out / "checkpoint", out / "loras"
        self.log = Log(out / "log.jsonl")
        self.held_out = photographs.read(pictures, photographs.HELD_OUT)
        self.learnt = photographs.read(pictures, photographs.TRAINING)
        self._banks: list[Tensor] = []
        self._pools: list[pairs.Pool] = []

    def tensors(self) -> list[Tensor]:
        return [photographs.as_tensor(picture) for picture in self.learnt.values()]

    def load(self) -> QwenImageEditPipeline:
        return checkpoint.read(self.checkpoint, torch.float32).to(self.device)

    def save(self, pipeline: QwenImageEditPipeline) -> None:
        """In half precision, to which the weights were rounded already; without the paths of this machine."""
        pipeline.to(torch.float16).save_pretrained(self.checkpoint)
        pipeline.to(torch.float32)
        for file in ("model_index.json", "transformer/config.json", "vae/config.json"):
            config = json.loads((self.checkpoint / file).read_text())
            config.pop("_name_or_path", None)
            (self.checkpoint / file).write_text(json.dumps(config, indent=2) + "\n")

    def vae(self) -> None:
        pipeline = parts.make_pipeline(sorted(pairs.words_of_texts())).to(self.device)
        bank = crops.make_bank(self.tensors(), self.scale.vae_bank, (384, 384), self.device)
        self.log("vae", bank=list(bank.shape))
        held_out = [photographs.as_tensor(evaluation.at_size(p)).to(self.device) for p in self.held_out.values()]
        vaes.train(pipeline.vae, bank, held_out, self.scale.vae_s, self.scale.vae_batch, self.log)
        vaes.several_frames(pipeline.vae)
        self.save(pipeline)

    def transformer(self) -> None:
        pipeline = self.load()
        pools = self.pools(pipeline)
        texts = pairs.texts_of_instructions()
        picture = evaluation.at_size(self.learnt["raccoon"])
        plus = QwenImageEditPlusPipeline(**pipeline.components)
        groups = pairs.embed(pipeline, EDIT, texts, picture)
        others = pairs.embed(plus, EDIT_PLUS, texts, picture)
        self.log("transformer", groups=len(groups), pools=[list(pool.edits.shape) for pool in pools])
        with torch.no_grad():
            parts.look_at_words(pipeline.transformer.cpu(), groups[0].embeddings[:1].cpu(), WORDS)
        pipeline.transformer.to(self.device)
        flow_training.train(
            pipeline.transformer, pools, groups, others, self.scale.transformer_s, self.scale.batches, self.log
        )
        self.save(pipeline)

    def pools(self, pipeline: QwenImageEditPipeline) -> list[pairs.Pool]:
        """Latents of all edits at every size, made once."""
        if not self._pools:
            vaes.single_frame(pipeline.vae)
            for side, count in self.scale.banks:
                self._banks.append(crops.make_bank(self.tensors(), count, (side, side), self.device))
                every = [instruction.apply for instruction in edits.INSTRUCTIONS]
                self._pools.append(pairs.make_pool(pipeline.vae, self._banks[-1], every, torch.float16))
            vaes.several_frames(pipeline.vae)
            self.log("pools", sides=[side for side, _ in self.scale.banks])
        return self._pools

    def lora(self) -> None:
        pipeline = self.load()
        pools = self.pools(pipeline)
        picture = evaluation.at_size(self.learnt["raccoon"])
        for style in edits.STYLES:
            groups = pairs.embed(pipeline, EDIT, pairs.texts_of_style(style), picture)
            after = [self._then(instruction, style) for instruction in edits.INSTRUCTIONS]
            vaes.single_frame(pipeline.vae)
            banks = [bank[:count] for bank, count in zip(self._banks, self.scale.style_banks, strict=True)]
            styled = [pairs.make_pool(pipeline.vae, bank, after, torch.float16) for bank in banks]
            vaes.several_frames(pipeline.vae)
            style_training.train(
                pipeline.transformer,
                style,
                list(zip(pools, styled, strict=True)),
                groups,
                self.scale.lora_s,
                self.scale.batches,
                self.loras / style.file,
                self.log,
            )

    @staticmethod
    def _then(instruction: edits.Instruction, style: edits.Style) -> edits.Edit:
        return lambda x: style.apply(instruction.apply(x))

    def evaluate(self) -> None:
        config = ModelConfig(checkpoint=str(self.checkpoint), device=self.device.type)
        engine = TorchEngine.load(config)
        sheets: dict[str, list[Tensor]] = {}

        def show(photograph: str, what: str, made: Tensor) -> None:
            sheets.setdefault(photograph, []).append(made)

        found = evaluation.figures(engine, self.held_out, self.loras, show)
        (self.out / "figures.json").write_text(json.dumps(found, indent=1) + "\n")
        for name, made in sheets.items():
            sheet(made).save(self.out / f"{name}.jpg", quality=85)
        for kind, rows in found.items():
            for name, row in rows.items():
                self.log("figures", kind=kind, name=name, row=row)


def sheet(pictures: list[Tensor], side: int = 320, columns: int = 6) -> PIL.Image.Image:
    """All images, small, in the order in which they were made."""
    rows = -(-len(pictures) // columns)
    made = PIL.Image.new("RGB", (columns * side, rows * side))
    for i, picture in enumerate(pictures):
        array = (picture[0].permute(1, 2, 0) * 255).round().byte().cpu().numpy()
        made.paste(PIL.Image.fromarray(array).resize((side, side)), (i % columns * side, i // columns * side))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="the folder with the packages that hold the photographs")
    parser.add_argument("--photographs", type=Path, help="the folder that they are unpacked to (default: in --out)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--phases", default=",".join(PHASES), help="some of %(default)s")
    parser.add_argument("--vae-s", type=float, default=Scale.vae_s)
    parser.add_argument("--transformer-s", type=float, default=Scale.transformer_s)
    parser.add_argument("--lora-s", type=float, default=Scale.lora_s)
    parser.add_argument("--trial", action="store_true", help="see on a CPU that every phase runs")
    arguments = parser.parse_args()
    folder = arguments.photographs or arguments.out / "photographs"
    if arguments.wheels:
        photographs.unpack(arguments.wheels, folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(SEED)
    budget = {"vae_s": arguments.vae_s, "transformer_s": arguments.transformer_s, "lora_s": arguments.lora_s}
    training = Training(arguments.out, folder, TRIAL if arguments.trial else Scale(**budget), device)
    steps: dict[str, Callable[[], None]] = {
        "vae": training.vae,
        "transformer": training.transformer,
        "loras": training.lora,
        "evaluate": training.evaluate,
    }
    chosen = arguments.phases.split(",")
    if unknown := set(chosen) - set(PHASES):
        sys.exit(f"no such phase: {', '.join(sorted(unknown))}")
    for phase in PHASES:
        if phase in chosen:
            steps[phase]()


if __name__ == "__main__":
    main()
