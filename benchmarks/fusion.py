"""What each form that is written anew for speed takes beside the one that it stands for, at the published sizes.

python -m benchmarks.fusion            # on a GPU
python -m benchmarks.fusion --tiny     # on a CPU, to see that it runs

Medians of 20 calls. `apart` is the relative difference of the two results: 0 is bit for bit. On a CPU the fused GELU
is not the tanh form.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator

import torch
from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.chip import seconds
from benchmarks.full_size import TEXT, VISION
from benchmarks.losses import relative_error
from serve_app.models.architecture import MINIATURE_ARCHITECTURE, PUBLISHED
from serve_app.pipeline import vision_encoder
from serve_app.pipeline.fusion import linear_gelu, rotated
from serve_app.pipeline.miniature import make_text_encoder

Forms = tuple[str, Callable[[], Tensor], Callable[[], Tensor]]

# Of the images' stream, two of 1024x1024; and the sides of an image in the vision encoder's patches.
TOKENS, PATCHES = 8192, 74


def compiled(call: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], Tensor]:
    """As a block has it: compiled with what stands around it."""
    ready = torch.compile(call, dynamic=True)
    return lambda: ready(*inputs)


def forms(device: torch.device, dtype: torch.dtype, *, tiny: bool) -> Iterator[Forms]:
    """A name, what stood there before, and what stands there now."""
    tokens, patches = (64, 12) if tiny else (TOKENS, PATCHES)
    architecture = MINIATURE_ARCHITECTURE if tiny else PUBLISHED
    heads, width = architecture.num_attention_heads, architecture.attention_head_dim

    states = torch.randn(1, tokens, heads * width, device=device, dtype=dtype)
    linear = nn.Linear(heads * width, 4 * heads * width, device=device, dtype=dtype)
    yield (
        "linear and GELU",
        compiled(lambda x: F.gelu(F.linear(x, linear.weight, linear.bias), approximate="tanh"), states),
        compiled(lambda x: linear_gelu(x, linear.weight, linear.bias), states),
    )
    modulation = nn.Linear(heads * width, 6 * heads * width, device=device, dtype=dtype)
    times = torch.randn(25, heads * width, device=device, dtype=dtype)
    yield (
        "one modulation, 25 steps",
        lambda: torch.cat([modulation(time) for time in times.split(1)]),
        lambda: modulation(times),
    )
    turns = torch.polar(*(torch.rand(tokens, width // 2, device=device) for _ in range(2)))
    norm = nn.RMSNorm(width, device=device, dtype=dtype)
    queries = states.view(1, tokens, heads, width)
    yield (
        "norm and rotary embedding",
        compiled(lambda x, y: apply_rotary_emb_qwen(norm(x), y, use_real=False), queries, turns),
        compiled(lambda x, y: rotated(norm(x), y), queries, turns),
    )
    visual = make_visual(device, dtype, tiny=tiny)
    grid = torch.tensor([[1, patches, patches]], device=device)
    pixels = torch.randn(patches**2, 3 * 2 * 14**2, device=device, dtype=dtype)

    def look(attention: str) -> Tensor:
        visual.config._attn_implementation = attention
        return visual(pixels, grid_thw=grid).pooler_output

    vision_encoder.attend_to_windows_at_once(visual)
    yield "vision encoder", lambda: look("sdpa"), lambda: look(vision_encoder.NAME)


def make_visual(device: torch.device, dtype: torch.dtype, *, tiny: bool) -> nn.Module:
    small = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2} if tiny else {}
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return make_text_encoder(TEXT | {"num_hidden_layers": 1}, VISION | small).model.visual.eval()
    finally:
        torch.set_default_dtype(default)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    tiny = parser.parse_args().tiny
    device, dtype = (torch.device("cpu"), torch.float32) if tiny else (torch.device("cuda"), torch.bfloat16)
    torch.manual_seed(0)
    print("| what | before, ms | now, ms | apart |\n|---|---|---|---|")
    for name, before, now in forms(device, dtype, tiny=tiny):
        apart = relative_error(now().float(), before().float())
        times = [statistics.median([seconds(call, device) for _ in range(20)]) * 1e3 for call in (before, now)]
        print(f"| {name} | {times[0]:.3f} | {times[1]:.3f} | {apart:.5f} |", flush=True)


if __name__ == "__main__":
    main()
