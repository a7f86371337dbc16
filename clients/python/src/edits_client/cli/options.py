"""The options of `edits edit`, `submit` and `explain`, and the request that they mean."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edits_client.bodies import Lora, Options

Images = Annotated[
    str, typer.Argument(help="The image to edit: a file, or an http(s) URL. Further ones go with --image.")
]
Prompt = Annotated[str, typer.Argument(help="What to do with it.")]
MoreImages = Annotated[
    list[str] | None, typer.Option("--image", "-i", help="A further control image, for models that take several.")
]
Loras = Annotated[list[str] | None, typer.Option("--lora", "-l", help="PATH or PATH:MULTIPLIER; several are allowed.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="A model's id. Default: the only one that fits.")]
Preset = Annotated[str | None, typer.Option("--preset", "-p", help="A preset's name: see `edits presets`.")]
SizeText = Annotated[
    str | None, typer.Option("--size", "-s", help="`input` (the image's own shape, the default) or WxH.")
]
Steps = Annotated[int | None, typer.Option("--steps", help="Denoising steps.")]
Guidance = Annotated[float | None, typer.Option("--guidance", help="Guidance scale.")]
Negative = Annotated[str | None, typer.Option("--negative", help="Negative prompt.")]
Seeds = Annotated[
    list[int] | None, typer.Option("--seed", help="A seed; one image each if several are given; -1: drawn.")
]
Trigger = Annotated[
    str | None, typer.Option("--trigger", help="Replaces [trigger] in the prompt; `auto`: the LoRA's own word.")
]
ProfileName = Annotated[str | None, typer.Option("--profile", help="Whose preparation is followed.")]
QualityName = Annotated[str | None, typer.Option("--quality", help="exact, balanced, fast or turbo.")]
MinPsnr = Annotated[
    float | None,
    typer.Option("--min-psnr", help="Lowest accepted PSNR of a tier's images (dB); otherwise the image is exact."),
]
MinSsim = Annotated[
    float | None,
    typer.Option("--min-ssim", help="Lowest accepted SSIM of a tier's images; otherwise the image is exact."),
]
Format = Annotated[str | None, typer.Option("--format", help="png, jpeg or webp. Default: by the name of the output.")]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", min=0, help="Wait for so many seconds at most. The request goes on.", show_default=False),
]
PriorityName = Annotated[str | None, typer.Option("--priority", help="interactive or bulk.")]


def options_of(values: dict[str, Any]) -> Options:
    """The client's options from those of a command, by the names that the commands give them."""
    try:
        loras = None if values["loras"] is None else [Lora.parse(text) for text in values["loras"]]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--lora") from error
    limits = {"psnr_db": values["min_psnr"], "ssim": values["min_ssim"]}
    options: dict[str, Any] = {
        "model": values["model"],
        "preset": values["preset"],
        "loras": loras,
        "size": values["size"],
        "steps": values["steps"],
        "guidance": values["guidance"],
        "negative_prompt": values["negative"],
        "seeds": values["seeds"] or (),
        "trigger_word": values["trigger"],
        "profile": values["profile"],
        "quality": values["quality"],
        "max_loss": {name: limit for name, limit in limits.items() if limit is not None} or None,
        "output_format": values["output_format"],
        "priority": values["priority"],
    }
    return options  # type: ignore[return-value]
