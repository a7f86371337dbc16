"""Records every tensor that enters or leaves the parts of a pipeline, in order."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

Event = tuple[str, Any]


@contextmanager
def record(pipeline) -> Iterator[list[Event]]:
    """The events of the block: a name of the stage, and its tensor or value."""
    events: list[Event] = []

    def note(name: str, value: Any) -> None:
        events.append((name, value.clone() if isinstance(value, torch.Tensor) else value))

    def on_text(module, args, kwargs) -> None:
        for name in ("input_ids", "pixel_values", "image_grid_thw"):
            note(name, kwargs.get(name))

    def on_rotary(module, args, kwargs) -> None:
        note("position_ids", args[1] if len(args) > 1 else kwargs["position_ids"])

    def on_transformer(module, args, kwargs) -> None:
        for name in ("hidden_states", "timestep", "encoder_hidden_states", "encoder_hidden_states_mask", "img_shapes"):
            note(name, kwargs[name])

    text, vae = pipeline.text_encoder.model, pipeline.vae
    hooks = [
        text.register_forward_pre_hook(on_text, with_kwargs=True),
        text.language_model.rotary_emb.register_forward_pre_hook(on_rotary, with_kwargs=True),
        vae.encoder.register_forward_pre_hook(lambda module, args: note("vae_pixels", args[0])),
        vae.quant_conv.register_forward_hook(lambda module, args, output: note("vae_moments", output)),
        pipeline.transformer.register_forward_pre_hook(on_transformer, with_kwargs=True),
        vae.post_quant_conv.register_forward_pre_hook(lambda module, args: note("final_latents", args[0])),
        vae.decoder.register_forward_hook(lambda module, args, output: note("decoded", output)),
    ]
    step = FlowMatchEulerDiscreteScheduler.step

    def on_step(self, model_output, timestep, sample, **kwargs):
        note("sigmas", self.sigmas)
        note("guided_prediction", model_output)
        return step(self, model_output, timestep, sample, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(patch.object(FlowMatchEulerDiscreteScheduler, "step", on_step))
        for hook in hooks:
            stack.callback(hook.remove)
        yield events


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return type(a) is type(b) and a == b


def differences(ours: list[Event], theirs: list[Event]) -> list[str]:
    """The names of the stages that differ, each once, in order; a differing sequence of stages is one."""
    if [name for name, _ in ours] != [name for name, _ in theirs]:
        return ["sequence of stages"]
    pairs = zip(ours, theirs, strict=True)
    return list(dict.fromkeys(name for (name, a), (_, b) in pairs if not equal(a, b)))
