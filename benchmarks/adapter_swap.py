"""How long the weights take to change at the published size, on one GPU, and what it leaves behind.

Random rank-32 adapters on all 840 linears of the blocks, in pinned host memory, as an editor holds them.

python -m benchmarks.adapter_swap            # swaps, stacks, scales; copies on the device and in host memory
python -m benchmarks.adapter_swap --compile  # and whether compiled blocks notice
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict

import torch
from diffusers import QwenImageTransformer2DModel
from torch._dynamo.utils import counters

from serve_app.adapters.changes import Adapter, Kronecker, LowRank
from serve_app.adapters.weights import Weights
from serve_app.models.architecture import PUBLISHED

RANK = 32
DEVICE = torch.device("cuda")


def make_transformer() -> QwenImageTransformer2DModel:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with DEVICE, torch.no_grad():
        transformer = QwenImageTransformer2DModel(**asdict(PUBLISHED))
    torch.set_default_dtype(torch.float32)
    return transformer.eval().requires_grad_(False)


def make_lora(seed: int, dtype: torch.dtype = torch.bfloat16) -> Adapter:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    changes = {}
    for name, (out, into) in PUBLISHED.linears.items():
        if name.startswith("transformer_blocks."):
            up = torch.randn(out, RANK, generator=generator, device=DEVICE) * 0.01
            down = torch.randn(RANK, into, generator=generator, device=DEVICE) * 0.01
            changes[name] = LowRank(up.to("cpu", dtype), down.to("cpu", dtype), 1.0)
    return Adapter(changes, pinned=True)


def make_lokr(seed: int) -> Adapter:
    """Whole matrices of 16x16 and of what is left, as the trainer's default factor gives."""
    generator = torch.Generator().manual_seed(seed)
    changes = {
        name: Kronecker(
            (torch.randn(16, 16, generator=generator).bfloat16(),),
            (
                torch.randn(out // 16, RANK, generator=generator).bfloat16() * 0.01,
                torch.randn(RANK, into // 16).bfloat16(),
            ),
            1.0,
        )
        for name, (out, into) in PUBLISHED.linears.items()
        if name.startswith("transformer_blocks.")
    }
    return Adapter(changes, pinned=True)


def seconds(action: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(transformer: QwenImageTransformer2DModel, copies: str, swaps: int) -> None:
    checksum = sum(p.double().sum().item() for p in transformer.transformer_blocks[7].parameters())
    weights = Weights(transformer, copies)
    a, b, c, lokr = make_lora(1), make_lora(2), make_lora(3, torch.float16), make_lokr(4)
    first = seconds(lambda: weights.apply({"a": (a, 1.0)}))
    memory = torch.cuda.memory_allocated()
    times = []
    for number in range(swaps):
        adapter_id, adapter = ("b", b) if number % 2 == 0 else ("a", a)
        times.append(
            seconds(lambda adapter_id=adapter_id, adapter=adapter: weights.apply({adapter_id: (adapter, 1.0)}))
        )
    growth = torch.cuda.memory_allocated() - memory
    report(
        copies=copies,
        adapter_mib=round(a.size_bytes / 2**20),
        first_with_the_copy_s=round(first, 3),
        swap_median_s=round(statistics.median(times), 4),
        swap_max_s=round(max(times), 4),
        swaps=swaps,
        growth_bytes=growth,
        same_again_s=round(seconds(lambda: weights.apply({"a": (a, 1.0)})), 5),
        scale_only_s=round(seconds(lambda: weights.apply({"a": (a, 0.5)})), 4),
        two_stacked_s=round(seconds(lambda: weights.apply({"a": (a, 0.5), "b": (b, 0.5)})), 4),
        fp16_file_s=round(seconds(lambda: weights.apply({"c": (c, 1.0)})), 4),
        lokr_s=round(seconds(lambda: weights.apply({"lokr": (lokr, 1.0)})), 4),
        restore_s=round(seconds(lambda: weights.apply({})), 4),
        restored=checksum == sum(p.double().sum().item() for p in transformer.transformer_blocks[7].parameters()),
        allocated_gib=round(torch.cuda.memory_allocated() / 2**30, 1),
    )


@torch.no_grad()
def measure_compiled(transformer: QwenImageTransformer2DModel) -> None:
    """Graphs before and after swaps, stacks and scales: compiled blocks must not notice."""
    weights = Weights(transformer, "device")
    a, b = make_lora(1), make_lora(2)
    side = 32
    inputs = {
        "hidden_states": torch.randn(1, side * side, 64, device=DEVICE, dtype=torch.bfloat16),
        "timestep": torch.tensor([0.5], device=DEVICE, dtype=torch.bfloat16),
        "encoder_hidden_states": torch.randn(1, 64, PUBLISHED.joint_attention_dim, device=DEVICE, dtype=torch.bfloat16),
        "encoder_hidden_states_mask": None,
        "img_shapes": [[(1, side, side)]],
        "return_dict": False,
    }
    transformer.compile_repeated_blocks(fullgraph=True)

    def forward() -> torch.Tensor:
        return transformer(**inputs)[0].clone()

    base = forward()
    before = dict(counters["stats"])
    stacks = ({"a": 1.0}, {"b": 1.0}, {"a": 0.5, "b": 0.5}, {"a": 0.25}, {})
    known = {"a": a, "b": b}
    outputs = []
    for stack in stacks:
        weights.apply({name: (known[name], scale) for name, scale in stack.items()})
        outputs.append(forward())
    report(
        graphs_before=before,
        graphs_after=dict(counters["stats"]),
        each_stack_changes_the_output=all(not torch.equal(base, output) for output in outputs[:-1]),
        none_is_the_base_again=torch.equal(base, outputs[-1]),
    )


def report(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    transformer = make_transformer()
    measure(transformer, "device", options.swaps)
    measure(transformer, "host", 10)
    if options.compile:
        measure_compiled(transformer)


if __name__ == "__main__":
    main()
