"""The miniatures of random weights: every class of each model of the family for real, for tests of exactness.

Made by code from a fixed seed at first use and kept in the user's cache, in the layout that diffusers'
`save_pretrained` writes. It has the real geometry (8x and 16 latent channels, 2x2 patches, the published
scheduler), so sizes, tokens and code paths are those of the full model; its images are noise.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    QwenImageTransformer2DModel,
)
from platformdirs import user_cache_path
from tokenizers import pre_tokenizers
from torch.nn import functional as F
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from serve_app.models.architecture import MINIATURE_ARCHITECTURE
from serve_app.models.prompt_tokens import SPECIAL_TOKENS
from serve_app.models.recipe import SCHEDULER_CONFIG
from serve_app.models.registry import ModelSpec

SEED = 20260823
HIDDEN = 32
TOKEN_IDS = {token: 256 + i for i, token in enumerate(SPECIAL_TOKENS)}

TEXT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": HIDDEN,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    # Three axes (time, height, width) share the 8 rotary frequencies of a head of 16.
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": TOKEN_IDS["<|endoftext|>"],
}
VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": HIDDEN,
    "patch_size": 14,
    "spatial_merge_size": 2,
}


def checkpoint_folder(spec: ModelSpec) -> Path:
    """The directory of a model's miniature, made on the first call. Safe to call from many processes at once."""
    return written_once(spec, [Path(__file__)], lambda folder: make(spec).save_pretrained(folder))


def written_once(spec: ModelSpec, sources: Iterable[Path], write: Callable[[Path], None]) -> Path:
    """A folder in the user's cache that `write` fills for a model, once for each content of `sources`."""
    # The name holds a hash of the sources, so that a changed source never finds an older cache.
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    target = user_cache_path("serve_app") / f"miniature-{digest.hexdigest()[:12]}" / spec.id
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=target.parent))
        write(made)
        try:
            made.rename(target)
        except OSError:
            # Another process made the same folder first.
            shutil.rmtree(made)
    return target


def make(spec: ModelSpec) -> DiffusionPipeline:
    """A model's miniature in memory; all have the same weights. Leaves the caller's random state as it was."""
    tokenizer = make_tokenizer()
    processor: dict[str, Any] = {}
    if spec.requires_control_image:
        processor["processor"] = Qwen2VLProcessor(
            # The published limits; the class's own default would shrink a 1 MP image.
            image_processor=Qwen2VLImageProcessor(size={"shortest_edge": 3136, "longest_edge": 12845056}),
            tokenizer=tokenizer,
            video_processor=Qwen2VLVideoProcessor(),
        )
    pipeline_class: type[DiffusionPipeline] = getattr(diffusers, spec.pipeline)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        return pipeline_class(
            scheduler=FlowMatchEulerDiscreteScheduler.from_config(SCHEDULER_CONFIG),
            vae=make_vae(),
            text_encoder=make_text_encoder(TEXT, VISION),
            tokenizer=tokenizer,
            transformer=make_transformer(spec.zero_cond_t),
            **processor,
        )


def make_vae() -> AutoencoderKLQwenImage:
    """Random weights, scaled so that decoded images have contrast, with statistics of latents in the config."""
    vae = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=0,
        attn_scales=[],
        temperal_downsample=[False, True, True],
    )
    blobs = F.interpolate(torch.randn(1, 3, 16, 16), size=(256, 256), mode="bicubic").clamp(-1, 1)
    latents = vae.encode(blobs.unsqueeze(2)).latent_dist.mode()[0].flatten(1)
    # Statistics other than 0 and 1, like the published ones, so that tests see how they are rounded and applied.
    spread, centre = latents.std(dim=1), latents.mean(dim=1)
    vae.register_to_config(latents_mean=centre.tolist(), latents_std=spread.tolist())
    vae.post_quant_conv.weight /= spread.view(1, 16, 1, 1, 1)
    vae.post_quant_conv.bias -= vae.post_quant_conv.weight.flatten(1) @ centre
    vae.decoder.conv_out.weight *= 4
    grey = vae.decode(centre.view(1, 16, 1, 1, 1).expand(1, 16, 1, 32, 32)).sample[0].flatten(1)
    vae.decoder.conv_out.bias -= grey.median(dim=1).values
    return vae.eval()


def make_transformer(zero_cond_t: bool) -> QwenImageTransformer2DModel:
    """Random weights, but with a strong bias shared by queries and keys, so that a token attends to its own position.

    Otherwise attention over thousands of tokens is flat, and the control image and the prompt hardly matter.
    """
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=64,
        out_channels=16,
        axes_dims_rope=(4, 6, 6),
        zero_cond_t=zero_cond_t,
        **asdict(MINIATURE_ARCHITECTURE),
    )
    for block in transformer.transformer_blocks:
        attention = block.attn
        attention.to_q.bias.copy_(3 * torch.randn(16))
        attention.to_k.bias.copy_(attention.to_q.bias)
        attention.add_k_proj.bias.copy_(attention.to_q.bias)
        attention.norm_q.weight *= 2
        attention.norm_k.weight *= 2
        attention.norm_added_k.weight *= 2.5
        attention.to_v.weight *= 2
        attention.add_v_proj.weight *= 20
        attention.to_out[0].weight *= 3
        # The gate of the attention's residual branch: the third of six modulation vectors.
        block.img_mod[1].bias[32:48] += 1
    transformer.proj_out.weight *= 3
    return transformer.eval()


def make_tokenizer() -> Qwen2Tokenizer:
    """Qwen2's tokenizer class with a vocabulary of the 256 bytes and the special tokens: no merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return Qwen2Tokenizer(
        vocab={symbol: i for i, symbol in enumerate(alphabet)},
        merges=[],
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
    )


def make_text_encoder(text: dict[str, Any], vision: dict[str, Any]) -> Qwen2_5_VLForConditionalGeneration:
    """A text encoder of these dimensions, for `make_tokenizer`'s tokens."""
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=TOKEN_IDS["<|image_pad|>"],
        video_token_id=TOKEN_IDS["<|video_pad|>"],
        vision_start_token_id=TOKEN_IDS["<|vision_start|>"],
        vision_end_token_id=TOKEN_IDS["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    return Qwen2_5_VLForConditionalGeneration(config)
