"""The attention kernels that a model may be configured with: one row for each. To add one, add its row.

A kernel that diffusers cannot load by its name is loaded by `choose_attention` in `pipeline/acceleration.py`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True)
class AttentionKernel:
    """`name` is the config's, `diffusers_name` diffusers' name of the same kernel.

    `switches_process`: without `compile`, each call sets for the whole process which kernels torch may choose, so that
    no other thread may compute at the same time.
    """

    name: str
    diffusers_name: str
    switches_process: bool = False


ATTENTION_KERNELS = {
    kernel.name: kernel
    for kernel in (
        # PyTorch's own choice, its cuDNN and its flash kernel.
        AttentionKernel("native", "native"),
        AttentionKernel("cudnn", "_native_cudnn", switches_process=True),
        AttentionKernel("flash", "_native_flash", switches_process=True),
        # FlashAttention 3 and 4, if their packages are installed.
        AttentionKernel("flash_3", "_flash_3"),
        AttentionKernel("flash_4", "flash_4_hub"),
    )
}

# The names as a type that pydantic checks. mypy accepts only literals that are written out.
if TYPE_CHECKING:
    AttentionName = str
else:
    AttentionName = Literal[*ATTENTION_KERNELS]
