"""The models around the transformer: text encoder, vision encoder and VAE, with caches of their results."""

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import PIL.Image
import torch
from torch import Tensor

from serve_app.images.decode import DecodedImage
from serve_app.images.sizes import Size
from serve_app.models.recipe import Recipe, Resize
from serve_app.pipeline import conditioning, vision_encoder
from serve_app.pipeline.checkpoint import Pipeline
from serve_app.pipeline.device import StageTimer, record_stream, synchronise_stream
from serve_app.pipeline.latent_colors import LatentColors, fitted_colors, known_colors
from serve_app.pipeline.offloading import Placement
from serve_app.pipeline.streaming import StreamedPlacement
from serve_app.pipeline.tensor_cache import TensorCache
from serve_app.tasks import EditPlan


@dataclass(frozen=True)
class Conditions:
    """The transformer's inputs besides the noisy latents, on the encoders' device; their computation is complete.

    `positive` and `negative` (None without guidance) are prompt embeddings, (1, L, hidden); `control` is the packed
    latents of all control images, in order, (1, tokens, 64), None without any. `reused` counts the results that came
    from the caches of earlier edits.
    """

    positive: Tensor
    negative: Tensor | None
    control: Tensor | None
    reused: dict[str, int] = field(default_factory=dict)

    def record_stream(self) -> None:
        """Call this before using the tensors on another stream than the one that computed them."""
        for tensor in (self.positive, self.negative, self.control):
            if tensor is not None:
                record_stream(tensor)


@dataclass
class PromptEncoding:
    """State shared by the two prompts of one edit.

    `vision_features` are the vision encoder's outputs by their images: both prompts use the same images, which are
    encoded once even if nothing is cached between edits. `cache_hits` counts embeddings from an earlier edit.
    """

    vision_features: dict[Hashable, Tensor] = field(default_factory=dict)
    cache_hits: int = 0


class Encoders:
    """The text encoder and the VAE of one pipeline, each used by one thread at a time. Thread-safe.

    The VAE holds the state of a running encoding or decoding, and its tiling is a switch of the whole VAE. The
    computation of a cached tensor is complete on the device before another thread can get it.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        placement: Placement | StreamedPlacement,
        prompt_cache_bytes: int,
        control_cache_bytes: int,
    ) -> None:
        self._pipeline = pipeline
        self._placement = placement
        self._device = placement.device
        self._prompts = TensorCache(prompt_cache_bytes)
        self._controls = TensorCache(control_cache_bytes)
        self._text_lock = threading.Lock()
        self._vae_lock = threading.Lock()
        self._resizing = ThreadPoolExecutor(1, "resize")
        vision_encoder.batch_window_attention(pipeline.text_encoder.model.visual)

    def conditions(
        self, plan: EditPlan, images: Sequence[DecodedImage], recipe: Recipe, timer: StageTimer
    ) -> Conditions:
        """The encoded prompts and control images of a plan, computed or from the caches."""
        pixels = self._control_pixels(plan, images, recipe)
        with timer.stage("encode_prompt"), self._alone(self._text_lock):
            encoding = PromptEncoding()
            positive = self._prompt(plan.prompt, images, recipe.encoder_sizes, recipe, encoding)
            negative = None
            if recipe.guided:
                negative = self._prompt(plan.negative_prompt, images, recipe.negative_encoder_sizes, recipe, encoding)
        with timer.stage("encode_control"), self._alone(self._vae_lock):
            before = self._controls.hits
            control = self._control(plan, images, recipe, pixels)
            reused = {"prompts": encoding.cache_hits, "controls": self._controls.hits - before}
        return Conditions(positive, negative, control, reused)

    @contextmanager
    def _alone(self, lock: threading.Lock) -> Iterator[None]:
        """Holds `lock`. Queued work is complete before the lock is released, also after an error."""
        with lock:
            try:
                yield
            finally:
                synchronise_stream(self._device)

    def decode(self, latents: Tensor, plan: EditPlan) -> PIL.Image.Image:
        """The image of packed latents. Raises UnusableResult."""
        with self._vae_lock, self._vae(tiled=plan.vae_tiling):
            return conditioning.decode_latents(self._pipeline, latents, plan.width, plan.height)

    def latent_colors(self) -> LatentColors:
        """The colors of the VAE's latents, on the device. For an unknown VAE they are fitted now, in seconds."""
        vae = self._pipeline.vae
        colors = known_colors(vae)
        if colors is None:
            with self._vae_lock, self._vae(tiled=False):
                colors = fitted_colors(vae, self._device)
        return colors.to(self._device)

    def _prompt(
        self,
        text: str,
        images: Sequence[DecodedImage],
        sizes: Sequence[Sequence[Size]],
        recipe: Recipe,
        encoding: PromptEncoding,
    ) -> Tensor:
        """A prompt's embeddings with the control images, each resized to its `sizes` in turn."""
        images_key = tuple((image.digest, tuple(steps)) for image, steps in zip(images, sizes, strict=True))

        def vision_features(compute: Callable[[], Tensor]) -> Tensor:
            if images_key not in encoding.vision_features:
                features = self._prompts.get(("vision features", images_key), compute)
                encoding.vision_features[images_key] = record_stream(features)
            return encoding.vision_features[images_key]

        def encode() -> Tensor:
            encoder = self._pipeline.text_encoder
            pixels = [
                conditioning.encoder_image(image.image, steps, self._device, encoder.dtype)
                for image, steps in zip(images, sizes, strict=True)
            ]
            with (
                self._placement.working(encoder),
                vision_encoder.cached_features(encoder.model.visual, vision_features),
            ):
                return conditioning.encode_prompt(self._pipeline, text, pixels, recipe, self._device)

        key = (recipe.prompt_prefix, text, images_key, recipe.position_ids, recipe.max_prompt_tokens)
        encoding.cache_hits += key in self._prompts
        return record_stream(self._prompts.get(key, encode))

    def _control_pixels(
        self, plan: EditPlan, images: Sequence[DecodedImage], recipe: Recipe
    ) -> list[Future[Tensor] | None]:
        """The resizing of each control image whose latents are not cached, by a thread of its own.

        It takes a CPU as long as encoding a prompt takes a GPU.
        """
        return [
            None
            if control_key(image, resizes, plan) in self._controls
            else self._resizing.submit(conditioning.control_pixels, self._pipeline, image.image, resizes)
            for image, resizes in zip(images, recipe.control_resizes, strict=True)
        ]

    def _control(
        self,
        plan: EditPlan,
        images: Sequence[DecodedImage],
        recipe: Recipe,
        pixels: Sequence[Future[Tensor] | None],
    ) -> Tensor | None:
        latents = [
            record_stream(self._control_latents(image, resizes, plan, resized))
            for image, resizes, resized in zip(images, recipe.control_resizes, pixels, strict=True)
        ]
        return torch.cat(latents, dim=1) if latents else None

    def _control_latents(
        self, image: DecodedImage, resizes: tuple[Resize, ...], plan: EditPlan, resized: Future[Tensor] | None
    ) -> Tensor:
        def encode() -> Tensor:
            # Without a future, the latents were cached and have been evicted since.
            pixels = (
                conditioning.control_pixels(self._pipeline, image.image, resizes)
                if resized is None
                else resized.result()
            )
            with self._vae(tiled=plan.vae_tiling):
                return conditioning.encode_control(self._pipeline, pixels, self._device)

        return self._controls.get(control_key(image, resizes, plan), encode)

    @contextmanager
    def _vae(self, *, tiled: bool) -> Iterator[None]:
        """The VAE, ready to work on its device. Its own feature cache is cleared afterwards, also on errors."""
        vae = self._pipeline.vae
        # The switch that diffusers' `enable_tiling` sets; the tile sizes are the class's defaults.
        vae.use_tiling = tiled
        try:
            with self._placement.working(vae):
                yield
        finally:
            vae.clear_cache()


def control_key(image: DecodedImage, resizes: tuple[Resize, ...], plan: EditPlan) -> Hashable:
    """Everything that a control image's latents depend on."""
    return (image.digest, resizes, plan.vae_tiling)
