"""The trained miniature's parts before training: the real model's classes, small, with a tokenizer of whole words."""

import json
import math
from collections.abc import Iterable
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageTransformer2DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from serve_app.models.prompt_tokens import SPECIAL_TOKENS
from serve_app.models.recipe import SCHEDULER_CONFIG
from serve_app.pipeline.checkpoint import PROCESSOR_CONFIG
from serve_app.pipeline.miniature import VISION

HIDDEN = 64
TEXT: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    # Three axes (time, height, width) share the 8 rotary frequencies of a head of 16.
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    "bos_token_id": None,
    "eos_token_id": None,
}
VAE: dict[str, Any] = {
    "base_dim": 8,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 8],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}
TRANSFORMER: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 3,
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "joint_attention_dim": HIDDEN,
    "axes_dims_rope": (8, 12, 12),
}

ROPE_BASE = 10000.0

# Spelt differently, meant alike: they share an embedding.
SPELLINGS = {"color": "colour", "colors": "colours", "gray": "grey"}


def make_pipeline(words: Iterable[str]) -> QwenImageEditPipeline:
    """Every part, from torch's current random state. `words` become one token each, as does the template's text."""
    tokenizer = make_tokenizer([*words, *_words_of_templates()])
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=PROCESSOR_CONFIG["size"]),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
    )
    with torch.no_grad():
        pipeline = QwenImageEditPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler.from_config(SCHEDULER_CONFIG),
            vae=AutoencoderKLQwenImage(**VAE),
            text_encoder=make_text_encoder(tokenizer),
            tokenizer=tokenizer,
            transformer=make_transformer(),
            processor=processor,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _words_of_templates() -> list[str]:
    """The words that the pipeline puts around a prompt: with them as tokens, what it drops is just its own text."""
    parts = (None,) * 6
    return make_template(QwenImageEditPipeline(*parts)).split()


def make_template(pipeline: QwenImageEditPipeline) -> str:
    text: str = pipeline.prompt_template_encode
    for token in SPECIAL_TOKENS:
        text = text.replace(token, " ")
    return text.replace("{}", " ")


def make_tokenizer(words: Iterable[str]) -> Qwen2Tokenizer:
    """Qwen2's tokenizer class: bytes, merged to these words and no others."""
    texts = [
        spelt for word in sorted(set(words)) for spelt in (word, f" {word}", word.capitalize(), f" {word.capitalize()}")
    ]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    empty = _tokenizer({symbol: i for i, symbol in enumerate(alphabet)}, [])
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = empty.backend_tokenizer.pre_tokenizer
    learner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=100_000, initial_alphabet=alphabet, show_progress=False)
    )
    learnt = json.loads(learner.to_str())["model"]
    return _tokenizer(learnt["vocab"], [tuple(merge) for merge in learnt["merges"]])


def _tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Qwen2Tokenizer:
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
    )


def make_text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """Frozen random weights. A word's embedding is the same at a sentence's start, within it, and in capitals."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    config = Qwen2_5_VLConfig(
        text_config=TEXT | {"vocab_size": len(tokenizer), "pad_token_id": ids["<|endoftext|>"]},
        vision_config=VISION | {"out_hidden_size": HIDDEN},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    encoder = Qwen2_5_VLForConditionalGeneration(config)
    table = encoder.get_input_embeddings().weight
    # What a word says is to outweigh what attention mixes into it from a thousand tokens of image.
    nn.init.normal_(table, std=0.1)
    rows: dict[str, int] = {}
    for row in range(len(tokenizer)):
        word = tokenizer.decode([row]).strip().lower()
        if len(word) > 1 and word.isalpha():
            word = SPELLINGS.get(word, word)
            table[row] = table[rows.setdefault(word, row)]
    return encoder.eval()


def make_transformer() -> QwenImageTransformer2DModel:
    """Random weights, but one head of each block looks at the control image at a token's own place, one near it.

    Training finds that by itself, only later: attention over thousands of tokens is flat at first. A bias that
    queries and keys share makes rotary scores peak at distance 0 in rows and columns; in time, which tells the
    target (0) from the control image (1), the query's is turned by one step.
    """
    transformer = QwenImageTransformer2DModel(**TRANSFORMER)
    time, rows, _ = TRANSFORMER["axes_dims_rope"]
    size = TRANSFORMER["attention_head_dim"]
    # The three fastest frequencies of rows and columns, and the fastest of time, in pairs of features.
    fast = torch.zeros(size)
    fast[0:2] = fast[time : time + 6] = fast[time + rows : time + rows + 6] = 1
    turn = torch.eye(size)
    turn[:2, :2] = torch.tensor([[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]])
    for block in transformer.transformer_blocks:
        attention = block.attn
        for head, strength in enumerate((3.0, 1.5)):
            features = slice(head * size, (head + 1) * size)
            bias = strength * fast * torch.randn(size).sign()
            attention.to_k.bias[features] = bias
            attention.to_q.bias[features] = turn @ bias
        attention.norm_q.weight.copy_(1.3 + 2.0 * fast)
        attention.norm_k.weight.copy_(1.3 + 2.0 * fast)
    return transformer


def look_at_words(transformer: QwenImageTransformer2DModel, embeddings: Tensor, words: int) -> None:
    """Let a third head of each block look at the prompt's own tokens, the last `words` of `embeddings` (1, L, hidden).

    They are a dozen behind more than a thousand tokens of a nearly black image, which all look alike: their
    common direction is turned away from the query's bias, and everything else towards it. The rotary
    frequencies used are so slow that a token's place in the image hardly counts; the distance to the prompt
    is made up for.
    """
    time, rows, columns = TRANSFORMER["axes_dims_rope"]
    size = TRANSFORMER["attention_head_dim"]
    head = slice(2 * size, 3 * size)
    slowest = [(end - 2, axis) for axis, end in ((time, time), (rows, time + rows), (columns, size))]
    seen = transformer.txt_in(transformer.txt_norm(embeddings))[0]
    common = nn.functional.layer_norm(seen[:-words].mean(dim=0), seen.shape[-1:])
    for block in transformer.transformer_blocks:
        attention = block.attn
        bias = torch.zeros(size)
        query = torch.zeros(size)
        for first, axis in slowest:
            bias[first] = 2.5
            angle = embeddings.shape[1] * ROPE_BASE ** (2 / axis - 1)
            query[first], query[first + 1] = 2.5 * math.cos(angle), 2.5 * math.sin(angle)
        attention.to_q.bias[head] = query
        attention.to_k.bias[head] = -bias
        attention.add_k_proj.bias[head] = bias
        attention.add_k_proj.weight[head] -= 2 * torch.outer(bias, common) / common.square().sum()
        for first, _ in slowest:
            for norm in (attention.norm_q, attention.norm_k, attention.norm_added_k):
                norm.weight[first : first + 2] = 2.0
