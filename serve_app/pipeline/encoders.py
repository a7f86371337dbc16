"""The parts around the transformer, with memory: prompts and control images into tensors, latents into an image."""

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
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
from serve_app.pipeline.device import Stopwatch, finish, lend
from serve_app.pipeline.offloading import Placement
from serve_app.pipeline.tensor_cache import TensorCache
from serve_app.tasks import EditPlan


@dataclass(frozen=True)
class Conditions:
    """What the transformer is given beside the latents, on the encoders' device and complete.

    `positive` and `negative` (None without guidance) are prompt embeddings, (1, L, hidden); `control` is the packed
    latents of all control images, in order, (1, tokens, 64), None without any. `reused` counts what was not computed
    but remembered from an earlier edit.
    """

    positive: Tensor
    negative: Tensor | None
    control: Tensor | None
    reused: dict[str, int] = field(default_factory=dict)

    def lend(self) -> None:
        """To be called by whoever uses them on another stream than the one that made them."""
        for tensor in (self.positive, self.negative, self.control):
            if tensor is not None:
                lend(tensor)


@dataclass
class Reading:
    """The prompts of one edit: what the vision encoder made of its images, and how many embeddings were remembered.

    Both prompts are read beside the same images, which are looked at once even if nothing outlasts the edit.
    """

    sights: dict[Hashable, Tensor] = field(default_factory=dict)
    remembered: int = 0


class Encoders:
    """The text encoder and the VAE of one pipeline. Any thread may ask; each of the two does one thing at a time.

    The VAE keeps the state of a running encoding or decoding in itself, and its tiling is a switch. What is
    remembered is complete on the device before anybody else sees it.
    """

    def __init__(
        self, pipeline: Pipeline, placement: Placement, prompt_cache_bytes: int, control_cache_bytes: int
    ) -> None:
        self._pipeline = pipeline
        self._placement = placement
        self._device = placement.device
        self._prompts = TensorCache(prompt_cache_bytes)
        self._controls = TensorCache(control_cache_bytes)
        self._text_lock = threading.Lock()
        self._vae_lock = threading.Lock()
        vision_encoder.attend_to_windows_at_once(pipeline.text_encoder.model.visual)

    def conditions(
        self, plan: EditPlan, images: Sequence[DecodedImage], recipe: Recipe, watch: Stopwatch
    ) -> Conditions:
        """Encode a plan's prompts and control images, or remember them."""
        with watch.stage("encode_prompt"), self._alone(self._text_lock):
            reading = Reading()
            positive = self._prompt(plan.prompt, images, recipe.encoder_sizes, recipe, reading)
            negative = None
            if recipe.guided:
                negative = self._prompt(plan.negative_prompt, images, recipe.negative_encoder_sizes, recipe, reading)
        with watch.stage("encode_control"), self._alone(self._vae_lock):
            before = self._controls.hits
            control = self._control(plan, images, recipe)
            reused = {"prompts": reading.remembered, "controls": self._controls.hits - before}
        return Conditions(positive, negative, control, reused)

    @contextmanager
    def _alone(self, lock: threading.Lock) -> Iterator[None]:
        """Within, nobody else; what was queued is complete before anybody is let in, also if something failed."""
        with lock:
            try:
                yield
            finally:
                finish(self._device)

    def decode(self, latents: Tensor, plan: EditPlan) -> PIL.Image.Image:
        """The image of packed latents. Raises UnusableResult."""
        with self._vae_lock, self._vae(plan):
            return conditioning.decode_latents(self._pipeline, latents, plan.width, plan.height)

    def _prompt(
        self,
        text: str,
        images: Sequence[DecodedImage],
        sizes: Sequence[Sequence[Size]],
        recipe: Recipe,
        reading: Reading,
    ) -> Tensor:
        """A prompt's embeddings beside the control images, each resized to its `sizes` in turn."""
        shown = tuple((image.digest, tuple(steps)) for image, steps in zip(images, sizes, strict=True))

        def see(look: Callable[[], Tensor]) -> Tensor:
            if shown not in reading.sights:
                reading.sights[shown] = lend(self._prompts.get(("sight", shown), look))
            return reading.sights[shown]

        def encode() -> Tensor:
            encoder = self._pipeline.text_encoder
            pixels = [
                conditioning.encoder_image(image.image, steps, self._device, encoder.dtype)
                for image, steps in zip(images, sizes, strict=True)
            ]
            with self._placement.working(encoder), vision_encoder.seeing(encoder.model.visual, see):
                return conditioning.encode_prompt(self._pipeline, text, pixels, recipe, self._device)

        key = (recipe.prompt_prefix, text, shown, recipe.position_ids, recipe.max_prompt_tokens)
        reading.remembered += key in self._prompts
        return lend(self._prompts.get(key, encode))

    def _control(self, plan: EditPlan, images: Sequence[DecodedImage], recipe: Recipe) -> Tensor | None:
        latents = [
            lend(self._control_latents(image, resizes, plan))
            for image, resizes in zip(images, recipe.control_resizes, strict=True)
        ]
        return torch.cat(latents, dim=1) if latents else None

    def _control_latents(self, image: DecodedImage, resizes: tuple[Resize, ...], plan: EditPlan) -> Tensor:
        def encode() -> Tensor:
            pixels = conditioning.control_pixels(self._pipeline, image.image, resizes)
            with self._vae(plan):
                return conditioning.encode_control(self._pipeline, pixels, self._device)

        return self._controls.get((image.digest, resizes, plan.vae_tiling), encode)

    @contextmanager
    def _vae(self, plan: EditPlan) -> Iterator[None]:
        """The VAE works within. What it remembers of one image goes, also of one that was too much for it."""
        vae = self._pipeline.vae
        # The switch that diffusers' enable_tiling sets; its sizes of tiles are the class's own.
        vae.use_tiling = plan.vae_tiling
        try:
            with self._placement.working(vae):
                yield
        finally:
            vae.clear_cache()
