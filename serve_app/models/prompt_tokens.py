"""Lengths of prompts in tokens: an ingress refuses a prompt that is too long, or says which part is not read.

Free of torch. The tokenizer is the checkpoint's own if its files are on this machine; otherwise lengths are estimates,
and messages say so.
"""

import json
import logging
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken, Encoding, Regex, Tokenizer, models, normalizers, pre_tokenizers

from serve_app.config import MINIATURE, MINIATURE_RANDOM, CheckpointConfig
from serve_app.images.sizes import Size
from serve_app.models.architecture import TRAINED_MINIATURE
from serve_app.models.recipe import Recipe
from serve_app.models.registry import MODELS, Family

logger = logging.getLogger(__name__)

# Positions that the transformer knows: the rows of a table in diffusers' `QwenEmbedRope`, which raises no clear error
# beyond them.
POSITIONS = 4096
# Pixels a side of the vision encoder's merged patch: 2 x 2 patches of 14 pixels, sides rounded to it.
MERGED_PATCH = 28
# Without a tokenizer: bytes of a token on average in English, and the most that a text of 100,000 characters has.
BYTES_PER_TOKEN, MAX_BYTES_PER_TOKEN = 4, 16

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Qwen2's (`tokenization_qwen2.py` in transformers).
WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Template:
    """The text before and after a prompt. The embeddings of the first `dropped` tokens are dropped."""

    head: str
    dropped: int
    tail: str = "<|im_end|>\n<|im_start|>assistant\n"


_EDIT_HEAD = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where "
    "appropriate.<|im_end|>\n<|im_start|>user\n"
)
# `prompt_template_encode` and `prompt_template_encode_start_idx` of diffusers' pipelines.
TEMPLATES: dict[Family, Template] = {
    "edit": Template(_EDIT_HEAD + "<|vision_start|><|image_pad|><|vision_end|>", 64),
    "edit_plus": Template(_EDIT_HEAD, 64),
    "text_to_image": Template(
        "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
        "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n",
        34,
    ),
}


@dataclass(frozen=True)
class Truncation:
    """A text of which the model does not read the last `lost` of its `words`. Without `is_exact`, all are estimates."""

    tokens: int
    words: int
    lost: int
    is_exact: bool


class PromptTokens:
    """Counts the tokens of prompts for one configured model.

    Most texts are too short to reach a limit, so the tokenizer is read only when one may not be.
    """

    def __init__(self, config: CheckpointConfig) -> None:
        self._config = config
        self._template = TEMPLATES[MODELS[config.id].family]

    def count(self, text: str, recipe: Recipe, encoder_sizes: Sequence[Sequence[Size]], threshold: int) -> int:
        """How many tokens the transformer receives for a text and its images.

        Up to `threshold`, the answer may be any number up to it: it is exact only above. Without a tokenizer it is a
        lower bound.
        """
        for_images = image_tokens(encoder_sizes)
        whole = self._template.head + recipe.prompt_prefix + text + self._template.tail
        length = _utf8_length(whole)
        if for_images + length - self._template.dropped <= threshold:
            return threshold
        if self._tokenizer is None:
            return for_images + len(text.encode()) // MAX_BYTES_PER_TOKEN
        # The head, or the prefix, has a token for each image already.
        return len(self._encode(whole).ids) - self._template.dropped + for_images - len(encoder_sizes)

    def truncation(self, text: str, recipe: Recipe) -> Truncation | None:
        """The part of a text that the model does not read; None if it reads all. For models that cut their prompts."""
        if recipe.max_prompt_tokens is None:
            return None
        template = self._template
        whole = template.head + text + template.tail
        if _utf8_length(whole) <= recipe.max_prompt_tokens:
            return None
        words = len(text.split())
        if self._tokenizer is None:
            tokens = len(text.encode()) // BYTES_PER_TOKEN
            lost = round(words * (1 - recipe.max_prompt_tokens / tokens)) if tokens > recipe.max_prompt_tokens else 0
            return Truncation(tokens, words, lost, False) if lost else None
        read = self._encode(whole)
        end = template.dropped + recipe.max_prompt_tokens
        if len(read.ids) <= end:
            return None
        unread = whole[read.offsets[end][0] : len(template.head) + len(text)].split()
        return Truncation(len(self._encode(text).ids), words, len(unread), True) if unread else None

    def _encode(self, text: str) -> Encoding:
        assert self._tokenizer is not None
        return self._tokenizer.encode(text, add_special_tokens=False)

    @cached_property
    def _tokenizer(self) -> Tokenizer | None:
        try:
            return _read_tokenizer(self._config)
        except Exception:
            # The library has no error class of its own. Editors refuse such a checkpoint; here, estimates are good
            # enough.
            logger.warning("the tokenizer of %s cannot be read: lengths are estimates", self._config.id, exc_info=True)
            return None


def max_text_tokens(recipe: Recipe, target: Size) -> int:
    """How many tokens a prompt may have in an edit whose result has the size `target`, in pixels."""
    return max_tokens_with_images((width // 16, height // 16) for width, height in (target, *recipe.control_sizes))


def max_tokens_with_images(grids: Iterable[tuple[int, int]]) -> int:
    """How many tokens of a prompt have positions with images of these grids (rows and columns of tokens).

    The positions of an image count from its middle; those of the text begin after the longest half.
    """
    return POSITIONS - max(max(grid) // 2 for grid in grids)


def image_tokens(encoder_sizes: Sequence[Sequence[Size]]) -> int:
    """Tokens of the vision encoder's images, each resized to its sizes in turn."""
    final_sizes = (sizes[-1] for sizes in encoder_sizes)
    return sum(round(width / MERGED_PATCH) * round(height / MERGED_PATCH) for width, height in final_sizes)


def _utf8_length(text: str) -> int:
    """Bytes of a text after the tokenizer's normalisation: an upper bound for its tokens."""
    return len(unicodedata.normalize("NFC", text).encode())


def _read_tokenizer(config: CheckpointConfig) -> Tokenizer | None:
    """The tokenizer of a checkpoint; None if its files are not on this machine."""
    if config.checkpoint == MINIATURE_RANDOM:
        return _make_tokenizer({byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    if whole := _file(config, "tokenizer.json"):
        return Tokenizer.from_file(str(whole))
    vocabulary, merges = _file(config, "vocab.json"), _file(config, "merges.txt")
    if vocabulary is None or merges is None:
        return None
    return _make_tokenizer(*models.BPE.read_file(str(vocabulary), str(merges)), _added_tokens(config))


def _make_tokenizer(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], added: Sequence[str] = SPECIAL_TOKENS
) -> Tokenizer:
    """Qwen2's tokenizer of these files, as transformers makes it."""
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in added])
    return tokenizer


def _added_tokens(config: CheckpointConfig) -> Sequence[str]:
    file = _file(config, "tokenizer_config.json")
    added = json.loads(file.read_text()).get("added_tokens_decoder", {}) if file else {}
    return [token["content"] for token in added.values()] or SPECIAL_TOKENS


def _file(config: CheckpointConfig, name: str) -> Path | None:
    """A file of the checkpoint's tokenizer, in its folder or in the hub's local cache."""
    folder = TRAINED_MINIATURE if config.checkpoint == MINIATURE else Path(config.checkpoint)
    if folder.is_dir():
        file = folder / "tokenizer" / name
        return file if file.is_file() else None
    # This import takes a fifth of a second, and most requests do not need it.
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(config.checkpoint, f"tokenizer/{name}", revision=config.revision)
    return Path(cached) if isinstance(cached, str) else None
