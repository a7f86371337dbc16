"""The attention kernels that a model may be configured with. To add one, add its row."""

from typing import TYPE_CHECKING, Literal

# The config's names, and diffusers' names of the same kernels: PyTorch's own choice, its cuDNN or flash kernels by
# name, or FlashAttention 3 or 4 if their packages are installed. `python -m benchmarks.beside_stock` compares them.
ATTENTION_BACKENDS = {
    "native": "native",
    "cudnn": "_native_cudnn",
    "flash": "_native_flash",
    "flash_3": "_flash_3",
    "flash_4": "flash_4_hub",
}

# The names as a type that pydantic checks. mypy accepts only literals that are written out.
if TYPE_CHECKING:
    AttentionName = str
else:
    AttentionName = Literal[*ATTENTION_BACKENDS]
