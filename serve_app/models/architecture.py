"""The transformer's dimensions, from which its memory and its work follow, without loading it.

Free of torch, so that an ingress may import it.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from serve_app.config import MINIATURE, MINIATURE_RANDOM, CheckpointConfig
from serve_app.errors import CheckpointRefused
from serve_app.models.checkpoint_configs import read_config, read_remote_config
from serve_app.models.checkpoint_store import newest_copy

logger = logging.getLogger(__name__)

# The linears of one block, on which adapters are trained (ostris/ai-toolkit 0.12.26): (out, in) in units of the width.
BLOCK_LINEARS = {
    "attn.to_q": (1, 1),
    "attn.to_k": (1, 1),
    "attn.to_v": (1, 1),
    "attn.add_q_proj": (1, 1),
    "attn.add_k_proj": (1, 1),
    "attn.add_v_proj": (1, 1),
    "attn.to_out.0": (1, 1),
    "attn.to_add_out": (1, 1),
    "img_mod.1": (6, 1),
    "txt_mod.1": (6, 1),
    "img_mlp.net.0.proj": (4, 1),
    "img_mlp.net.2": (1, 4),
    "txt_mlp.net.0.proj": (4, 1),
    "txt_mlp.net.2": (1, 4),
}

# The norms of one block that have weights, one for each feature of an attention head.
BLOCK_NORMS = ("attn.norm_q", "attn.norm_k", "attn.norm_added_q", "attn.norm_added_k")

# Features of the sinusoidal embedding of time, and of a token of latents (16 channels in 2x2 patches).
TIME_FEATURES, LATENT_FEATURES = 256, 64


@dataclass(frozen=True)
class Architecture:
    """The dimensions, by their names in `QwenImageTransformer2DModel`."""

    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    joint_attention_dim: int

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def adapted_modules(self) -> int:
        """The number of linears that a full adapter of the trainer changes."""
        return self.num_layers * len(BLOCK_LINEARS)

    @cached_property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter, by its name in the module tree."""
        found: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in self.linears.items()}
        found |= {f"{name}.bias": (out,) for name, (out, _) in self.linears.items()}
        norms = (f"transformer_blocks.{block}.{name}" for block in range(self.num_layers) for name in BLOCK_NORMS)
        found |= {f"{name}.weight": (self.attention_head_dim,) for name in norms}
        return found | {"txt_norm.weight": (self.joint_attention_dim,)}

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The shape (out, in) of every linear, by its name in the module tree."""
        width = self.width
        found = {
            f"transformer_blocks.{block}.{name}": (out * width, into * width)
            for block in range(self.num_layers)
            for name, (out, into) in BLOCK_LINEARS.items()
        }
        return found | {
            "time_text_embed.timestep_embedder.linear_1": (width, TIME_FEATURES),
            "time_text_embed.timestep_embedder.linear_2": (width, width),
            "img_in": (width, LATENT_FEATURES),
            "txt_in": (width, self.joint_attention_dim),
            "norm_out.linear": (2 * width, width),
            "proj_out": (LATENT_FEATURES, width),
        }

    def forward_flops(self, image_tokens: int, text_tokens: int) -> int:
        """Floating-point operations of one forward for one image, a multiply-add counted as two.

        Each token of either stream passes 12 matrices of width x width per block (queries, keys, values,
        output, and a feed-forward of four times the width); attention, over both streams together, is two
        products of tokens x tokens x width. Modulation, embeddings and the last projection are left out:
        below 0.1% at 1024x1024.
        """
        tokens = image_tokens + text_tokens
        linears = 2 * 12 * self.width**2 * tokens
        attention = 2 * 2 * tokens**2 * self.width
        return self.num_layers * (linears + attention)


# As published with every checkpoint of the family (transformer/config.json), and the class's own defaults.
PUBLISHED = Architecture(60, 24, 128, 3584)
# The miniature of random weights.
MINIATURE_ARCHITECTURE = Architecture(2, 1, 16, 32)
# The trained miniature's files, in diffusers' layout.
TRAINED_MINIATURE = Path(__file__).parent.parent / "pipeline" / "miniature_files"


def architecture_of(model: CheckpointConfig) -> Architecture:
    """The dimensions behind a configured checkpoint; those of a hub id are the published ones.

    Raises CheckpointRefused.
    """
    if model.checkpoint == MINIATURE_RANDOM:
        return MINIATURE_ARCHITECTURE
    if "://" in model.checkpoint:
        return from_config(_config_at(model.checkpoint, Path(model.checkpoint_disk_folder)))
    folder = TRAINED_MINIATURE if model.checkpoint == MINIATURE else Path(model.checkpoint)
    file = folder / "transformer/config.json"
    return from_config(read_config(file)) if file.is_file() else PUBLISHED


def _config_at(url: str, copies: Path) -> dict[str, Any]:
    """The transformer's config of the checkpoint at `url`; while its store is away, that of this machine's copy."""
    try:
        return read_remote_config(f"{url.rstrip('/')}/transformer/config.json")
    except CheckpointRefused as error:
        copy = newest_copy(copies, url)
        if copy is None or not isinstance(error.__cause__, OSError) or isinstance(error.__cause__, FileNotFoundError):
            raise
        logger.warning("%s; using the copy of it that was used last, %s", error, copy)
        return read_config(copy / "transformer/config.json")


def from_config(config: Mapping[str, Any]) -> Architecture:
    """The dimensions that a transformer's config names."""
    return replace(PUBLISHED, **{key: config[key] for key in asdict(PUBLISHED) if key in config})
