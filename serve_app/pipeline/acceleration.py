"""How the transformer computes: with which attention kernel, compiled or not, every block at every step or not.

All of it is configuration, the same for every replica of a model: an image must not depend on who made it.
"""

import os
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch._dynamo as dynamo
from diffusers import FirstBlockCacheConfig, QwenImageTransformer2DModel
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import Tensor
from torch.fx.experimental import _config as symbols

from serve_app.config import AttentionName, ModelConfig
from serve_app.pipeline.fusion import fuse

# (queries, keys, values, scale), each (1, tokens, heads, width of a head), to the same shape.
AttentionKernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, float | None], Tensor]

# diffusers' names of its own backends.
BACKENDS: dict[AttentionName, str] = {
    "native": "native",
    "cudnn": "_native_cudnn",
    "flash": "_native_flash",
    "flash_3": "_flash_3",
    "flash_4": "flash_4_hub",
}
# Graphs that Dynamo may hold for one block before it gives up, which under `fullgraph` fails the edit.
GRAPHS_OF_A_BLOCK = 64


def is_accelerated(config: ModelConfig) -> bool:
    """Whether a replica computes otherwise than plain."""
    return config.compile != "none" or config.attention != "native" or bool(config.lossy)


def accelerate(transformer: QwenImageTransformer2DModel, config: ModelConfig) -> None:
    """Have `transformer` compute as the config says. Compiling itself waits for the first forward."""
    if config.attention != "native":
        choose_attention(transformer, config.attention)
    if config.compile == "regional":
        # Inductor and Triton keep what they compile there, and find it when the next process starts.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = config.compile_cache_folder
        # On a CPU torch's fused GELU is another form of it.
        plain = config.quantization == "none" and transformer.device.type == "cuda"
        fuse(transformer, with_gelu=plain)
        compile_blocks(transformer)
    if config.feature_cache is not None:
        transformer.enable_cache(FirstBlockCacheConfig(config.feature_cache))


def reset_feature_cache(transformer: QwenImageTransformer2DModel) -> None:
    """Drop what a feature cache remembers of an image's steps."""
    if transformer.is_cache_enabled:
        transformer._reset_stateful_cache()


def compile_blocks(transformer: QwenImageTransformer2DModel, backend: str | Callable[..., Any] = "inductor") -> None:
    """One graph for all blocks: they are alike, and their weights are its inputs, so that adapters written into the
    weights change nothing that it depends on.

    Not diffusers' `compile_repeated_blocks`: it compiles what hooks have become part of, and those of the feature
    cache, set later, decide by values, which no graph can.
    """
    for block in transformer.transformer_blocks:
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=True, backend=backend)


def configure_thread(threads: int) -> None:
    """Set what torch keeps for each thread by itself: whoever computes calls this first, in its own thread.

    The number of threads decides the last bits of a CPU's sums, and compiled code is guarded with it.
    """
    torch.set_num_threads(threads)
    dynamo.config.recompile_limit = GRAPHS_OF_A_BLOCK
    # An image of as many tokens as a block is wide (768x1024 at the published size) would have them taken for one
    # number, which is no other for another image.
    symbols.use_duck_shape = False


def graphs_compiled() -> int:
    """How many graphs torch.compile has made in this process; a recompilation is one more."""
    return dynamo.utils.counters["stats"]["unique_graphs"]


def installed_flash_4() -> AttentionKernel:
    """FlashAttention-4's kernel out of the installed package. Raises ImportError."""
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
    """Set the kernel of every block. Raises ImportError for one that is not installed.

    Not diffusers' `set_attention_backend`: that sets a default of the whole process as well, and takes
    FlashAttention-4 from the hub alone.
    """
    backend = AttentionBackendName(BACKENDS[name])
    if name == "flash_4":
        taken_from_hub = attention_dispatch._HUB_KERNELS_REGISTRY[backend]
        # An operator is made once: graphs that were compiled with it hold on to it.
        taken_from_hub.kernel_fn = taken_from_hub.kernel_fn or as_operator(flash_4())
    for module in transformer.modules():
        if hasattr(getattr(module, "processor", None), "_attention_backend"):
            module.processor._attention_backend = backend


def as_operator(kernel: AttentionKernel) -> Callable[..., Tensor]:
    """The kernel as one opaque operator: what is compiled around it does not look into it."""
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
