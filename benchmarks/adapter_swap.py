"""Time to change the adapters in the weights at the published size on one GPU, and whether the weights stay exact.

Adapters are random, of rank 32, on all 840 linears of the blocks, in pinned host memory as in an editor.
`not_nearest` is the share of one linear's weights that are not the bf16 nearest to the definition in float64.

python -m benchmarks.adapter_swap            # swaps, stacks, scales; untouched weights on the device or in host memory
python -m benchmarks.adapter_swap --compile  # also checks that swaps cause no recompilation
python -m benchmarks.adapter_swap --fp8      # only swaps of weights in fp8, and whether they have the bits of torchao's
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import torch
from diffusers import QwenImageTransformer2DModel
from torch._dynamo.utils import counters

from benchmarks.device_speed import device_time
from serve_app.engine.deltas import Adapter, Kronecker, LowRank
from serve_app.engine.merged_weights import MergedWeights
from serve_app.engine.merging import with_products, write
from serve_app.models.architecture import PUBLISHED
from serve_app.pipeline.acceleration import compile_blocks
from serve_app.pipeline.quantization import quantised

Stack = dict[str, tuple[Adapter, float]]

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
    deltas = {}
    for name, (out, into) in PUBLISHED.linears.items():
        if name.startswith("transformer_blocks."):
            up = torch.randn(out, RANK, generator=generator, device=DEVICE) * 0.01
            down = torch.randn(RANK, into, generator=generator, device=DEVICE) * 0.01
            deltas[f"{name}.weight"] = LowRank(up.to("cpu", dtype), down.to("cpu", dtype), 1.0)
    return Adapter(deltas, pinned=True)


def make_lokr(seed: int) -> Adapter:
    """A LoKr adapter with factors of 16x16 and the rest, as the trainer's default factor gives."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {
        f"{name}.weight": Kronecker(
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
    return Adapter(deltas, pinned=True)


def seconds(action: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(transformer: QwenImageTransformer2DModel, copies: str, swaps: int) -> None:
    checksum = sum(p.double().sum().item() for p in transformer.transformer_blocks[7].parameters())
    made: list[MergedWeights] = []
    start = seconds(lambda: made.append(MergedWeights(transformer, copies)))
    [weights] = made
    a, b, fp16, lokr = make_lora(1), make_lora(2), make_lora(3, torch.float16), make_lokr(4)
    first = seconds(lambda: weights.apply({"a": (a, 1.0)}))
    memory = torch.cuda.memory_allocated()
    times = []
    for number in range(swaps):
        use = {"b": (b, 1.0)} if number % 2 == 0 else {"a": (a, 1.0)}
        times.append(seconds(partial(weights.apply, use)))
    report(
        copies=copies,
        adapter_mib=round(a.size_bytes / 2**20),
        start_s=round(start, 3),
        first_s=round(first, 3),
        swap_median_s=round(statistics.median(times), 4),
        swap_max_s=round(max(times), 4),
        swaps=swaps,
        growth_bytes=torch.cuda.memory_allocated() - memory,
    )
    stacks = {
        "same_again": {"a": (a, 1.0)},
        "scale_only": {"a": (a, 0.5)},
        "two_stacked": {"a": (a, 0.5), "b": (b, 0.7)},
        "fp16_file": {"fp16": (fp16, 0.8)},
        "bf16_and_fp16_stacked": {"a": (a, 0.5), "fp16": (fp16, 0.7)},
        "lokr": {"lokr": (lokr, 1.0)},
    }
    weights.apply({"a": (a, 1.0)})
    report(seconds={name: measure_stack(weights, stack, {"a": (a, 1.0)}) for name, stack in stacks.items()})
    restore = seconds(lambda: weights.apply({}))
    report(
        not_nearest={name: not_nearest(transformer, weights, stack) for name, stack in stacks.items()},
        restore_s=round(restore, 4),
        restored=checksum == sum(p.double().sum().item() for p in transformer.transformer_blocks[7].parameters()),
        allocated_gib=round(torch.cuda.memory_allocated() / 2**30, 1),
        peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 1),
    )


def measure_stack(weights: MergedWeights, stack: Stack, before: Stack) -> float:
    """Seconds to change from the stack `before` to `stack`, median of three."""
    times = []
    for _ in range(3):
        times.append(seconds(lambda: weights.apply(stack)))
        weights.apply(before)
    return round(statistics.median(times), 5)


@torch.no_grad()
def not_nearest(transformer: QwenImageTransformer2DModel, weights: MergedWeights, stack: Stack) -> float:
    name = "transformer_blocks.7.attn.to_q"
    weight = transformer.get_submodule(name).weight
    weights.apply({})
    exact = weight.double()
    for adapter, scale in stack.values():
        exact += scale * adapter.copy_to(DEVICE)[f"{name}.weight"].weight(torch.float64)
    weights.apply(stack)
    share = (weight != exact.bfloat16()).double().mean().item()
    weights.apply({})
    return round(share, 6)


@torch.no_grad()
def measure_fp8(transformer: QwenImageTransformer2DModel, swaps: int) -> None:
    weights = MergedWeights(transformer, "device")
    before = seconds(weights.quantise)
    weights.warm_up()
    a, b, fp16, lokr = make_lora(1), make_lora(2), make_lora(3, torch.float16), make_lokr(4)
    for name, stack in {
        "one": {"a": (a, 1.0)},
        "two": {"a": (a, 0.5), "b": (b, 0.7)},
        "fp16": {"fp16": (fp16, 0.8)},
        "lokr": {"lokr": (lokr, 1.0)},
        "none": {},
    }.items():
        weights.apply(stack)
        report(stack=name, other_bits_than_torchao=other_bits(weights, stack))
    weights.apply({"a": (a, 1.0)})
    on_device = {"a": {"a": a.copy_to(DEVICE)}, "b": {"b": b.copy_to(DEVICE)}}
    times: dict[str, list[float]] = {"from host memory": [], "copied ahead": []}
    for number in range(swaps):
        name, adapter = ("b", b) if number % 2 == 0 else ("a", a)
        way = "from host memory" if number % 4 < 2 else "copied ahead"
        there = on_device[name] if way == "copied ahead" else {}
        times[way].append(seconds(partial(weights.apply, {name: (adapter, 1.0)}, there)))
    report(
        fp8_swaps=swaps,
        quantise_s=round(before, 3),
        median_s={way: round(statistics.median(each), 4) for way, each in times.items()},
        max_s={way: round(max(each), 4) for way, each in times.items()},
        back_to_none_s=round(seconds(lambda: weights.apply({})), 4),
        peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 1),
    )
    print(device_time(lambda: weights.apply({"b": (b, 1.0)}, on_device["b"])), flush=True)


def other_bits(weights: MergedWeights, stack: Stack) -> int:
    """How many values and scales of two blocks differ from torchao's quantisation of the merged weights in bf16."""
    names = [name for name in weights._quantised if name.split(".")[1] in ("0", "7")]
    plain = {name: weights._untouched[name].clone() for name in names}
    on_device = {key: adapter.copy_to(DEVICE) for key, (adapter, _) in stack.items()}
    deltas = {name: [(on_device[key][name], scale) for key, (_, scale) in stack.items()] for name in names}
    differing = 0
    for name, product in with_products(deltas, plain):
        write(plain[name], weights._untouched[name], deltas[name], product)
        expected, found = quantised(plain[name]), weights._parameters[name]
        differing += int((expected.qdata.view(torch.uint8) != found.qdata.view(torch.uint8)).sum())
        differing += int((expected.scale != found.scale).sum())
    return differing


@torch.no_grad()
def measure_compiled(transformer: QwenImageTransformer2DModel) -> None:
    """Count graphs before and after swaps, stacks and scales: compiled blocks must not be compiled again."""
    weights = MergedWeights(transformer, "device")
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
    compile_blocks(transformer)

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
    parser.add_argument("--fp8", action="store_true")
    options = parser.parse_args()
    transformer = make_transformer()
    if options.fp8:
        measure_fp8(transformer, options.swaps)
        return
    measure(transformer, "device", options.swaps)
    measure(transformer, "host", 10)
    if options.compile:
        measure_compiled(transformer)


if __name__ == "__main__":
    main()
