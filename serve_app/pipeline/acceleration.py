"""How the transformer computes: its attention kernel, compilation, and the feature cache, which skips blocks.

All of it is configuration, the same for all replicas of a model: an image must not depend on the replica.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
import torch._dynamo as dynamo
from diffusers import FirstBlockCacheConfig, QwenImageTransformer2DModel
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import Tensor
from torch.fx.experimental import _config as symbols

from serve_app.config import ModelConfig
from serve_app.config.attention import ATTENTION_KERNELS, AttentionName
from serve_app.pipeline.fusion import fuse

# (queries, keys, values, scale), each (1, tokens, heads, width of a head), to the same shape.
AttentionKernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, float | None], Tensor]

# Inductor chooses no kernel by measuring it where the choice changes roundings: otherwise two engines give other pixels
# whenever two kernels are nearly equally fast.
INDUCTOR_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {"deterministic": True}

# Graphs that Dynamo may compile for one block. Beyond them it gives up, which under `fullgraph` fails the edit.
GRAPHS_OF_A_BLOCK = 64


def is_accelerated(config: ModelConfig) -> bool:
    """Whether a replica compiles, uses another attention kernel than `native`, or is lossy."""
    return config.compile != "none" or config.attention != "native" or bool(config.lossy)


def accelerate(transformer: QwenImageTransformer2DModel, config: ModelConfig, device: torch.device) -> None:
    """Set up `transformer`, which computes on `device`, as the config says. The first forward compiles."""
    if config.attention != "native":
        choose_attention(transformer, config.attention)
    if config.compile == "regional":
        # Inductor and Triton cache compiled code there for the next process.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = config.compile_cache_folder
        # torch's fused GELU on a CPU computes another form of GELU.
        plain = config.quantization == "none" and device.type == "cuda"
        fuse(transformer, with_gelu=plain)
        compile_blocks(transformer)


@contextmanager
def feature_cache(transformer: QwenImageTransformer2DModel, threshold: float | None) -> Iterator[None]:
    """Within, steps skip blocks by this threshold (None: never). Afterwards no features are held.

    The hooks wrap each block's forward, compiled or not, and are taken off again: another edit, with another threshold
    or none, computes what it would without them, by the same compiled code.
    """
    if threshold is None:
        yield
        return
    transformer.enable_cache(FirstBlockCacheConfig(threshold))
    try:
        yield
    finally:
        transformer.disable_cache()


def compile_blocks(transformer: QwenImageTransformer2DModel, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile one graph for all blocks. Weights are its inputs, so adapters merged into the weights need no new graph.

    diffusers' `compile_repeated_blocks` would compile the hooks too, and the feature cache's hooks decide by values,
    which a graph cannot.
    """
    options = INDUCTOR_OPTIONS if backend == "inductor" else None
    for block in transformer.transformer_blocks:
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=True, backend=backend, options=options)


def configure_thread(threads: int) -> None:
    """Set torch's settings of the current thread. Every thread that computes calls this first.

    The number of CPU threads changes the last bits of sums, and compiled code is guarded by it.
    """
    torch.set_num_threads(threads)
    dynamo.config.recompile_limit = GRAPHS_OF_A_BLOCK
    # Otherwise Dynamo would take the token count for the block's width where they happen to be equal (768x1024 at the
    # published size), and compile again for the next image.
    symbols.use_duck_shape = False


def graphs_compiled() -> int:
    """The number of graphs that torch.compile has made in this process, recompilations included."""
    return dynamo.utils.counters["stats"]["unique_graphs"]


def installed_flash_4() -> AttentionKernel:
    """FlashAttention-4's kernel from the installed package. Raises ImportError."""
    from flash_attn.cute import flash_attn_func

    def kernel(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        out = flash_attn_func(query, key, value, softmax_scale=scale)
        return out[0] if isinstance(out, tuple) else out

    return kernel


def choose_attention(
    transformer: QwenImageTransformer2DModel,
    name: AttentionName,
    flash_4: Callable[[], AttentionKernel] = installed_flash_4,
) -> None:
    """Set the attention kernel of every block. Raises ImportError for one that is not installed.

    diffusers' `set_attention_backend` would also set the default of the whole process, and it takes FlashAttention-4
    only from the hub.
    """
    backend = AttentionBackendName(ATTENTION_KERNELS[name].diffusers_name)
    if name == "flash_4":
        hub_kernel = attention_dispatch._HUB_KERNELS_REGISTRY[backend]
        # The operator is made once: compiled graphs keep a reference to it.
        hub_kernel.kernel_fn = hub_kernel.kernel_fn or as_operator(flash_4())
    for module in transformer.modules():
        if hasattr(getattr(module, "processor", None), "_attention_backend"):
            module.processor._attention_backend = backend


def as_operator(kernel: AttentionKernel) -> Callable[..., Tensor]:
    """The kernel as one opaque operator, which torch.compile does not trace into."""
    operator = torch.library.custom_op(
        "serve_app::attention",
        lambda query, key, value, scale: kernel(query, key, value, scale),
        mutates_args=(),
        schema="(Tensor query, Tensor key, Tensor value, float? scale) -> Tensor",
    )
    operator.register_fake(lambda query, key, value, scale: torch.empty_like(query))

    def attention(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None, causal: bool) -> Any:
        return operator(q, k, v, softmax_scale)

    return attention
