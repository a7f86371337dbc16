"""One model to serve: its settings in groups. In YAML all of them are flat keys of an entry of `models`."""

from pathlib import Path
from typing import Literal, Self

from platformdirs import user_cache_path
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from serve_app.config.attention import ATTENTION_KERNELS, AttentionName
from serve_app.config.paths import absolute, expand_home
from serve_app.config.section import ConfigSection
from serve_app.config.tiers import QuantizationName, TierConfig, TiersConfig, editor_group

# The checkpoints inside the package: one that was trained to edit, and one of random weights for tests of exactness.
MINIATURE = "miniature"
MINIATURE_RANDOM = "miniature-random"
EMBEDDED = (MINIATURE, MINIATURE_RANDOM)


class CheckpointConfig(ConfigSection):
    """Which model it is, and where its weights come from."""

    id: str = Field(
        "qwen_image_edit",
        description="The id of the model, as requests name it: `qwen_image_edit`, `qwen_image_edit_plus`, "
        "`qwen_image_edit_plus_2511`, `qwen_image` or `qwen_image_2512`. Its deployment is named "
        "`Editor-<id>`.",
    )
    checkpoint: str = Field(
        MINIATURE,
        description="A folder in diffusers' layout, the URL of one (`s3://bucket/path`, or another that fsspec knows), "
        "an id on the model hub, `miniature` (small, inside the package, trained to edit) or `miniature-random` "
        "(random weights, for tests).",
    )
    revision: str | None = Field(
        None, description="The branch, tag or, best, commit of a checkpoint on the hub. Null: its main branch."
    )
    local_files_only: bool = Field(
        False, description="Never ask the hub; a checkpoint that is not in its local cache is an error."
    )

    checkpoint_disk_folder: str = Field(
        str(user_cache_path("serve_app") / "checkpoints"),
        description="The folder in which a node keeps checkpoints that have a URL, for all its editors.",
    )
    checkpoint_disk_bytes: PositiveInt = Field(
        300 * 2**30,
        description="Maximum size of that folder. The checkpoints that were used the longest time ago go first, but "
        "none of the last hour.",
    )

    @model_validator(mode="after")
    def _only_hub_checkpoints_have_revisions(self) -> Self:
        if self.revision is not None and self.checkpoint in EMBEDDED:
            raise ValueError(f"revision: {self.checkpoint!r} is not a checkpoint of the hub, so it has no revisions")
        if self.revision is not None and "://" in self.checkpoint:
            raise ValueError(f"revision: {self.checkpoint!r} is a URL, which has no revisions; leave it out")
        return self


class PlacementConfig(ConfigSection):
    """Where an editor computes, and what it keeps in the device's memory."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="The device of an editor. `auto` is `cuda` if the cluster has a GPU."
    )
    threads: PositiveInt | None = Field(
        None,
        description="CPU threads of one editor. Null: the cores of its machine. Another number changes the last bits "
        "of an image.",
    )
    gpus_per_replica: Literal[1, 2, 4, 8] = Field(
        1,
        description="GPUs of one editor, each with a copy of the transformer. Each of the two guidance branches gets "
        "half of them. GPUs that share a branch, or the only branch of a step, compute a part of its tokens each. "
        "Needs `device: cuda`, without `offload` and without `adapter_weights: hooks`. With a "
        "`feature_cache`, each branch is computed on one GPU.",
    )
    offload: Literal["auto", "none", "stream"] = Field(
        "auto",
        description="`none`: the weights are on the GPU. `stream`: they are in host memory, each layer is copied to "
        "the GPU while earlier ones compute, and as many stay there as `device_memory_gib` allows: the same pixels, "
        "and nearly the same speed. Not with several `gpus_per_replica`, `prepare_ahead`, `quantization`, "
        "`feature_cache` or another `adapter_weights` than `auto`. `auto`: `none` if the GPU has room, otherwise "
        "`stream`.",
    )
    device_memory_gib: PositiveFloat | Literal["auto"] = Field(
        "auto",
        description="With `offload: stream`, the memory of the GPU (GiB) that an editor takes at most, the 0.8 GiB of "
        "its CUDA context included. `auto`: what is free when an edit needs it.",
    )
    vae_tiling: bool = Field(
        False, description="The VAE works in tiles for every request: less memory for large images, other pixels."
    )


class AdapterConfig(ConfigSection):
    """Where an editor keeps adapters (LoRAs), and how it applies them."""

    adapter_weights: Literal["auto", "device", "host", "hooks"] = Field(
        "auto",
        description="Where the untouched copy of the weights is that adapters are merged from: on the `device`, or in "
        "pinned memory of the `host`. `hooks` keeps no copy and computes adapters next to the weights "
        "(slower, LoRA only). `auto` measures what fits.",
    )
    adapter_cache_bytes: PositiveInt = Field(
        8 * 2**30,
        description="Maximum host memory of one editor for adapters, in addition to those that running edits use.",
    )
    adapter_disk_folder: str = Field(
        str(user_cache_path("serve_app") / "adapters"),
        description="The folder in which a node keeps the files of remote adapters.",
    )
    adapter_disk_bytes: PositiveInt = Field(100 * 2**30, description="Maximum size of that folder.")


class EncodingCacheConfig(ConfigSection):
    """What an editor keeps on its device for edits that encode the same input again."""

    prompt_cache_bytes: NonNegativeInt = Field(
        256 * 2**20,
        description="Maximum memory for the embeddings of prompts, and for what the vision encoder computed for them. "
        "0: none.",
    )
    control_cache_bytes: NonNegativeInt = Field(
        64 * 2**20, description="Maximum memory for the latents of control images. 0: none."
    )


class AccelerationConfig(ConfigSection):
    """What makes edits faster and changes an image by roundings at most."""

    prepare_ahead: bool | None = Field(
        None,
        description="Encode the next edit's prompts and control images, and copy its adapters to the device, while "
        "the current edit denoises. Null: on CUDA only, since on a CPU it would slow down the current "
        "edit, and not with `attention: cudnn` or `flash` without `compile`.",
    )
    attention: AttentionName = Field(
        "native",
        description="The transformer's attention kernel: PyTorch's choice, its cuDNN or flash kernel, or "
        "FlashAttention 3 or 4 (their packages must be installed). `python -m benchmarks.beside_stock` "
        "compares them.",
    )
    compile: Literal["none", "regional"] = Field(
        "none",
        description="`regional` compiles the transformer's blocks, once for all sizes. Needs `warm_up`; not with "
        "`adapter_weights: hooks`.",
    )
    compile_cache_folder: str = Field(
        str(user_cache_path("serve_app") / "compiled"),
        description="The folder for compiled blocks, where the next start finds them.",
    )
    warm_up: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        (),
        description="Sizes, each `[width, height]` in pixels. A replica makes an edit of each before it takes "
        "traffic, and checks a fixed edit against the one from before its acceleration.",
    )

    @property
    def switches_kernels(self) -> bool:
        """Whether each call of the transformer's attention sets for the whole process which kernels torch may take."""
        return self.compile == "none" and ATTENTION_KERNELS[self.attention].switches_process


class LossyConfig(ConfigSection):
    """What makes every edit of the model faster and changes pixels.

    Each result names these options and has the quality `lossy`. Requests with a trainer's profile, and those that ask
    for the quality `exact`, are refused while one is set. To let requests choose, use tiers.
    """

    quantization: QuantizationName = Field(
        "none",
        description="`fp8` computes the linear layers of the blocks in eight bits. Needs the package torchao; not "
        "with `offload` or `adapter_weights: hooks`.",
    )
    feature_cache: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="A step that changes the result of the first block by less than this share since the last whole "
        "forward takes over the other blocks' results from that forward (0.1: a tenth). Null: every step "
        "computes all blocks. Not with `offload`.",
    )

    @property
    def lossy(self) -> str:
        """The options that change an image by more than roundings, as the config has them; "" if none is set."""
        options = []
        if self.quantization != "none":
            options.append(f"quantization: {self.quantization}")
        if self.feature_cache is not None:
            options.append(f"feature_cache: {self.feature_cache}")
        return ", ".join(options)


# In reverse order, since pydantic takes the fields of the last base class first.
class ModelConfig(
    TiersConfig, LossyConfig, AccelerationConfig, EncodingCacheConfig, AdapterConfig, PlacementConfig, CheckpointConfig
):
    """One model to serve, by an Editor deployment with the name `Editor-<id>`, and one for each tier in fp8.

    Code that needs one group only takes that base class.
    """

    @property
    def editor_groups(self) -> dict[str, Self]:
        """The settings of the model's editors, by the name of their group: those of the model, and of tiers in fp8."""
        own = {
            editor_group(self.id, name, tier.quantization): self.model_copy(update={"quantization": tier.quantization})
            for name, tier in self.tiers.items()
            if tier.has_own_editors
        }
        return {self.id: self} | own

    @property
    def shared_tiers(self) -> list[TierConfig]:
        """The tiers whose images the model's own editors make."""
        return [tier for tier in self.tiers.values() if not tier.has_own_editors]

    @property
    def tier_adapters(self) -> list[str]:
        """The LoRAs that tiers apply under those of requests, named as in requests."""
        return [tier.adapter for tier in self.tiers.values() if tier.adapter is not None]

    @property
    def device_memory_bytes(self) -> int | None:
        """The limit of `device_memory_gib`; None without one."""
        return None if self.device_memory_gib == "auto" else int(self.device_memory_gib * 2**30)

    @field_validator("offload", mode="before")
    @classmethod
    def _names_what_replaces_former_modes(cls, value: object) -> object:
        if value in ("model", "sequential"):
            raise ValueError(f"offload: {value} was removed; stream is faster in less memory, with the same pixels")
        return value

    @model_validator(mode="after")
    def _offloaded_weights_are_not_accelerated(self) -> Self:
        if self.offload != "stream":
            if self.device_memory_gib != "auto":
                raise ValueError("device_memory_gib: only with offload: stream")
            return self
        if self.adapter_weights != "auto":
            raise ValueError("adapter_weights: only auto with offload: stream, which merges adapters in each pass")
        if self.prepare_ahead:
            raise ValueError("prepare_ahead: not with offload, since the next edit needs the memory of this one")
        if self.quantization != "none":
            raise ValueError("quantization: not with offload")
        if self.feature_cache is not None:
            raise ValueError("feature_cache: not with offload")
        return self

    @model_validator(mode="after")
    def _tiers_start_from_exact(self) -> Self:
        if self.tiers and self.lossy:
            raise ValueError(f"tiers: not with {self.lossy}, which changes all of the model's images; leave one out")
        for name, tier in self.tiers.items():
            if reason := self._reason_against(tier):
                raise ValueError(f"tiers.{name}.{reason}")
        return self

    def _reason_against(self, tier: TierConfig) -> str | None:
        """Why the model's other settings rule out the tier, beginning with the tier's key."""
        if self.offload == "stream" and tier.quantization != "none":
            return "quantization: not with offload: stream"
        if self.offload == "stream" and tier.feature_cache is not None:
            return "feature_cache: not with offload: stream"
        if self.adapter_weights == "hooks" and tier.quantization != "none":
            return "quantization: not with adapter_weights: hooks"
        return None

    @model_validator(mode="after")
    def _adapter_hooks_need_plain_weights(self) -> Self:
        if self.adapter_weights == "hooks" and self.quantization != "none":
            raise ValueError("quantization: not with adapter_weights: hooks")
        if self.adapter_weights == "hooks" and self.compile != "none":
            raise ValueError("compile: not with adapter_weights: hooks, where each adapter would be compiled anew")
        return self

    @model_validator(mode="after")
    def _several_gpus_need_cuda_and_whole_weights(self) -> Self:
        if self.gpus_per_replica == 1:
            return self
        if self.device != "cuda" or self.offload == "stream" or self.adapter_weights == "hooks":
            raise ValueError(
                "gpus_per_replica: more than one need device: cuda, and neither offload nor adapter_weights: hooks"
            )
        return self

    @model_validator(mode="after")
    def _compiled_blocks_are_warmed_up(self) -> Self:
        if self.compile != "none" and not self.warm_up:
            raise ValueError("compile: name the sizes to warm_up with, or the first requests would wait for it")
        return self

    @model_validator(mode="after")
    def _only_one_thread_switches_kernels(self) -> Self:
        if self.switches_kernels and (self.prepare_ahead or self.gpus_per_replica > 1):
            raise ValueError(
                f"attention: {self.attention} without compile is not for two threads (prepare_ahead: true, "
                "gpus_per_replica of 2 or more): torch's switch between kernels is the whole process's"
            )
        return self

    def resolved(self, folder: Path | None) -> Self:
        """This model with absolute paths; see `AppConfig.resolved`. A checkpoint that is not a folder is a hub id."""
        changes = {
            name: absolute(f"models[].{name}", getattr(self, name), folder)
            for name in ("adapter_disk_folder", "checkpoint_disk_folder", "compile_cache_folder")
        }
        checkpoint = (folder or Path("/")) / expand_home("models[].checkpoint", self.checkpoint)
        if self.checkpoint not in EMBEDDED and checkpoint.is_dir():
            changes["checkpoint"] = str(checkpoint)
        return self.model_copy(update=changes)
