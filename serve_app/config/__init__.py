"""The service's configuration: exactly the `args` of serve_config.yaml. Nothing else reads the environment."""

import base64
import binascii
import os
import re
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

from platformdirs import user_cache_path
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    field_validator,
    model_validator,
)

from serve_app.config.attention import AttentionName
from serve_app.errors import ConfigRefused

SQLITE_PREFIX = "sqlite+aiosqlite:///"
SECRET_PREFIX = "whsec_"
# The checkpoints inside the package: one that was trained to edit, and one of random weights for tests of exactness.
MINIATURE = "miniature"
MINIATURE_RANDOM = "miniature-random"
EMBEDDED = (MINIATURE, MINIATURE_RANDOM)
AUTO = "auto"
# The most that `max_prompt_chars` may be: what the schema of a request takes.
MAX_PROMPT_CHARS = 100_000

# An environment variable, as a config names it.
VARIABLE = re.compile(r"\$\{(\w+)\}")
# The keys of a model that name folders of the node that an editor runs on.
MODEL_FOLDERS = ("adapter_disk_folder", "compile_cache_folder")

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

# How an edit is prepared: as the reference server does, as the trainer's preview does (now, or up to an older
# version), or as the preview of the trainer version that wrote the adapter did. See models/profile.py.
ProfileName = Literal["reference", "trainer", "auto", "trainer-0.6.0", "trainer-0.7.32", "trainer-0.9.0"]

QuantizationName = Literal["none", "fp8"]


def expand_variables(text: str) -> str:
    """`text` with each `${NAME}` replaced by that environment variable.

    Raises ValueError that names a variable which is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ValueError(f"the environment variable {name} is not set")
        return os.environ[name]

    return VARIABLE.sub(value, text)


def expand_url(url: str) -> str:
    """`url` with its variables expanded. Raises ValueError if a password stands in it: Serve logs the config."""
    parts = urlsplit(url)
    passwords = (parts.password, *parse_qs(parts.query).get("password", []))
    if any(password and not VARIABLE.search(password) for password in passwords):
        raise ValueError("put the password into an environment variable and write ${ITS_NAME} here: Serve logs this")
    return expand_variables(url)


def read_secret(value: Any) -> Any:
    """The value of the environment variable that the config names. A SecretStr, which only code has, stays as it is."""
    if not isinstance(value, str):
        return value
    if not VARIABLE.fullmatch(value):
        raise ValueError("put the secret into an environment variable and write ${ITS_NAME} here: Serve logs this")
    return expand_variables(value)


def wants_spans() -> bool:
    """Whether OpenTelemetry's standard variables name somebody to send spans to. Its SDK reads the rest of them."""
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return any(os.environ.get(name) for name in endpoints) and os.environ.get("OTEL_TRACES_EXPORTER") != "none"


Url = Annotated[str, AfterValidator(expand_url)]
Secret = Annotated[SecretStr, BeforeValidator(read_secret)]


class Frozen(BaseModel):
    # An error names the key. Its value may hold a secret, and Serve logs the error.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ModelConfig(Frozen):
    """One model to serve: one Editor deployment, named `Editor-<id>`.

    `checkpoint` is `miniature`, `miniature-random`, a directory in diffusers' layout, or a hub id. `device: auto`
    is cuda where the cluster has a GPU. `threads` is the number of CPU threads of one editor (default: the machine's
    cores); another number changes the last bits of an image. `adapter_cache_bytes` is what an editor keeps
    of adapters in host memory, beside those of the edits in hand, `adapter_disk_bytes` what its node keeps of remote
    ones in `adapter_disk_folder`. `adapter_weights` says where a copy of the weights lies that adapters
    are merged from: on the `device`, in pinned memory of the `host`, or nowhere, with adapters as `hooks` beside the
    weights (slower, LoRA alone); `auto` measures what fits. `revision` pins a hub checkpoint to a branch, a
    tag or, best, a commit; `local_files_only` never asks the hub, what is not in its local cache is an error.
    `prompt_cache_bytes` and `control_cache_bytes` are what an editor keeps on its device of prompts' embeddings (with
    what the vision encoder saw beside them) and of control images' latents, for edits that ask for the same again; 0
    keeps none.
    `offload` keeps the model in host memory, for a card without room for it: `model` brings each part to the device for
    its stage, `sequential` each layer for its forward. `vae_tiling` has the VAE work in tiles for every request.
    `quantization: fp8` has the blocks' linears in eight bits (needs torchao), refused for the trainer's profiles.
    `feature_cache` has a step that changes the first block's work by less than this share since the last whole forward
    take over the other blocks' from there (0.1: a tenth), refused for the trainer's profiles as well.
    `gpus_per_replica: 2` gives each of the two guidance branches a GPU, with a copy of the transformer on both.
    `prepare_ahead` has the next edit's prompts and control images encoded and its adapters copied to the device while
    the current edit denoises; null: on CUDA alone, since on a CPU it would take cores from the edit, and not with
    `attention: cudnn` or `flash` without `compile`, which nothing else may compute beside.
    `attention` is the transformer's kernel; `compile: regional` compiles its blocks, once for all sizes, and keeps what
    it compiled in `compile_cache_folder`. A replica is ready once it has made an edit of each size (width, height) of
    `warm_up`, and a fixed one that is as it was before all that.
    """

    id: str = "qwen_image_edit"
    checkpoint: str = MINIATURE
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: PositiveInt | None = None
    adapter_cache_bytes: PositiveInt = 8 * 2**30
    adapter_disk_folder: str = str(user_cache_path("serve_app") / "adapters")
    adapter_disk_bytes: PositiveInt = 100 * 2**30
    adapter_weights: Literal["auto", "device", "host", "hooks"] = "auto"
    prompt_cache_bytes: NonNegativeInt = 256 * 2**20
    control_cache_bytes: NonNegativeInt = 64 * 2**20
    offload: Literal["none", "model", "sequential"] = "none"
    vae_tiling: bool = False
    quantization: QuantizationName = "none"
    feature_cache: Annotated[float, Field(gt=0, lt=1)] | None = None
    gpus_per_replica: Literal[1, 2] = 1
    prepare_ahead: bool | None = None
    attention: AttentionName = "native"
    compile: Literal["none", "regional"] = "none"
    compile_cache_folder: str = str(user_cache_path("serve_app") / "compiled")
    warm_up: tuple[tuple[PositiveInt, PositiveInt], ...] = ()
    revision: str | None = None
    local_files_only: bool = False

    @property
    def lossy(self) -> str:
        """The levers that change an image by more than roundings, as they stand in the config; "" if none is set."""
        quantization = self.quantization if self.quantization != "none" else None
        levers = {"quantization": quantization, "feature_cache": self.feature_cache}
        return ", ".join(f"{name}: {value}" for name, value in levers.items() if value is not None)

    @property
    def switches_kernels(self) -> bool:
        """Whether each call of the transformer's attention sets for the whole process which kernels torch may take."""
        return self.attention in ("cudnn", "flash") and self.compile == "none"

    @model_validator(mode="after")
    def _revision_is_of_a_hub_checkpoint(self) -> Self:
        if self.revision is not None and self.checkpoint in EMBEDDED:
            raise ValueError(f"revision: {self.checkpoint!r} is no hub checkpoint, so it has no revisions")
        return self

    @model_validator(mode="after")
    def _what_is_offloaded_is_not_fast(self) -> Self:
        if self.offload != "none" and (
            self.compile != "none" or self.prepare_ahead or self.adapter_weights == "device"
        ):
            raise ValueError("offload: not with compile, prepare_ahead or adapter_weights: device")
        if self.quantization != "none" and (self.offload != "none" or self.adapter_weights == "hooks"):
            raise ValueError("quantization: not with offload or adapter_weights: hooks")
        if self.feature_cache is not None and self.offload != "none":
            raise ValueError("feature_cache: not with offload")
        return self

    @model_validator(mode="after")
    def _two_gpus_are_two_gpus(self) -> Self:
        if self.gpus_per_replica == 2 and (
            self.device != "cuda" or self.offload != "none" or self.adapter_weights == "hooks"
        ):
            raise ValueError("gpus_per_replica: two need device: cuda, and neither offload nor adapter_weights: hooks")
        return self

    @model_validator(mode="after")
    def _what_is_compiled_is_warm(self) -> Self:
        if self.compile != "none" and not self.warm_up:
            raise ValueError("compile: name the sizes to warm_up with, or the first requests would wait for it")
        if self.compile != "none" and self.adapter_weights == "hooks":
            raise ValueError("compile: not with adapter_weights: hooks, where each adapter would be compiled anew")
        return self

    @model_validator(mode="after")
    def _what_is_set_for_the_process_is_set_alone(self) -> Self:
        if self.switches_kernels and (self.prepare_ahead or self.gpus_per_replica == 2):
            raise ValueError(
                f"attention: {self.attention} without compile is not for two threads (prepare_ahead: true, "
                "gpus_per_replica: 2): torch's switch between kernels is the whole process's"
            )
        return self


class FetchConfig(Frozen):
    """Limits on what the service downloads for a client.

    `max_bytes` and `max_pixels` hold for one control image (base64 ones too), `max_lora_bytes` for one
    adapter. `decode_timeout_s` is the CPU time that decoding one control image may take.
    `timeout_s` is for one whole download of an image or of an adapter's header, and for the silence of a
    server that sends an adapter; `lora_timeout_s` for one whole download of an adapter.
    `max_urls` is the number of different control image URLs of one request.
    `budget_bytes` is what one ingress holds in memory at a time of request bodies that are being checked, and as much
    again of control images from URLs; `connections` how many downloads it makes at a time. Where there are API keys,
    one tenant gets at most half of each. Whoever waits for them longer than `patience_s` gets 503 OVERLOADED; that time
    is no part of `timeout_s`.
    Addresses that are not public are refused unless `allow_private_addresses` is set or one of
    `allowed_networks` (CIDR) holds them; those in `denied_networks` are always refused. `hub_hosts` are the model
    hub's, each a host or `host:port`: their page URLs are understood, and a request's `hf_token` goes to them alone,
    over https to that port (443 if none is named).
    """

    max_bytes: PositiveInt = 20_000_000
    max_pixels: PositiveInt = 40_000_000
    max_lora_bytes: PositiveInt = 4_000_000_000
    decode_timeout_s: PositiveFloat = 10.0
    timeout_s: PositiveFloat = 10.0
    lora_timeout_s: PositiveFloat = 300.0
    max_redirects: int = Field(default=5, ge=0)
    max_urls: PositiveInt = 500
    budget_bytes: PositiveInt = 400_000_000
    connections: PositiveInt = 64
    patience_s: PositiveFloat = 5.0
    allow_private_addresses: bool = False
    hub_hosts: tuple[str, ...] = ("huggingface.co",)
    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    denied_networks: tuple[IPv4Network | IPv6Network, ...] = ()


class JobsConfig(Frozen):
    """Where jobs live, how long they may take, how many may wait, and how long they are kept.

    A request has `deadline_s` from its POST to its end, the queue included, unless it says otherwise. A
    dispatcher that has not been heard of for `lease_s` has lost what it had claimed. An editor that makes no step for
    `stall_s`, or is not heard of at all for `silence_s`, has lost its edit, and an edit that no editor says it has
    after `silence_s` is asked for anew; each image is tried at most `max_attempts` times. At most
    `max_queued_per_tenant` images of one tenant wait, and `max_queued` of all. A request is forgotten `keep_s`
    after its end, and sooner if the files and rows of all take more than `keep_bytes`; that is looked at every
    `sweep_s`.
    """

    # It may hold a password.
    database_url: Annotated[Url, Field(repr=False)] = SQLITE_PREFIX + "data/jobs.sqlite3"
    deadline_s: PositiveFloat = 86400.0
    lease_s: PositiveFloat = 10.0
    stall_s: PositiveFloat = 600.0
    # Editors speak every 2 s (`ALIVE_S` in replicas/edit_progress.py).
    silence_s: float = Field(30.0, ge=6.0)
    max_attempts: PositiveInt = 3
    max_queued_per_tenant: PositiveInt = 5_000
    max_queued: PositiveInt = 20_000
    keep_s: PositiveFloat = 30 * 86400.0
    keep_bytes: PositiveInt = 100 * 2**30
    sweep_s: PositiveFloat = 600.0


class AuthConfig(Frozen):
    """Who may call. `keys_file` holds hashes of API keys: see keys.py. Null: anybody may."""

    keys_file: Url | None = None


class WebhooksConfig(Frozen):
    """How webhooks are delivered. Without a `secret` to sign them with there are none.

    `secret` names the environment variable that holds it, as `${NAME}`: `whsec_` and the base64 of 24 to 64 random
    bytes, as the Standard Webhooks specification has it. A receiver has `timeout_s` to answer, and gets at most
    `max_attempts` tries: 15 take a day. Addresses that are not public, and those in `denied_networks`, are refused as
    in `fetch`.
    """

    secret: Secret | None = None
    timeout_s: PositiveFloat = 10.0
    max_attempts: PositiveInt = 15
    allow_private_addresses: bool = False
    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    denied_networks: tuple[IPv4Network | IPv6Network, ...] = ()

    @field_validator("secret")
    @classmethod
    def _secret_can_sign(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is None:
            return None
        text = secret.get_secret_value()
        try:
            key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if not text.startswith(SECRET_PREFIX) or not 24 <= len(key) <= 64:
            raise ValueError(f"a webhook secret is {SECRET_PREFIX} and the base64 of 24 to 64 random bytes")
        return secret


class EditorSettings(Frozen):
    """The `user_config` of an Editor: what changes in place."""

    log_level: LogLevel = "INFO"


class IngressSettings(Frozen):
    """The `user_config` of the Ingress: what changes in place.

    The quotas replace those of `jobs`. `keep_warm` names LoRAs, as requests do, that every editor holds in host memory
    once it takes traffic; those that were lately used most come after them.
    """

    log_level: LogLevel = "INFO"
    max_queued_per_tenant: PositiveInt | None = None
    max_queued: PositiveInt | None = None
    keep_warm: tuple[str, ...] = ()


class FrontConfig(Frozen):
    """Limits of the HTTP front that `edits-server run` puts before the service. Plain `serve run` has no front.

    `max_connections` is for all clients together. One address may have `max_requests_per_address` requests in progress,
    streams and waiting requests included; more are answered 429. Connections from `trusted_proxies` come from a
    proxy of your own: their `X-Forwarded-For` names the client's address, and `X-Forwarded-Proto` its scheme.
    """

    max_connections: PositiveInt = 4000
    max_requests_per_address: PositiveInt = 400
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))


class AppConfig(Frozen):
    """The `args` of serve_config.yaml. Every key is optional; the defaults run on a laptop.

    `base_url`: what status and result URLs start with; null: as the client addressed us.
    `lora_root`: the folder below which `loras[].path` is looked up.
    `require_lora: false` allows requests with an empty `loras`.
    `allowed_hosts`: the names under which the service answers, without ports; `*` stands for any characters.
    A body must arrive within `body_timeout_s`.
    `config_folder`: the folder that relative paths are relative to; `edits-server run` sets it to the config file's.
    """

    models: tuple[ModelConfig, ...] = Field(default=(ModelConfig(),), min_length=1)
    lora_root: Url = "samples/loras"
    preview_profile: ProfileName = "reference"
    max_loras_per_request: PositiveInt = 4
    require_lora: bool = True
    base_url: Url | None = None
    cors_origins: tuple[str, ...] = ("*",)
    allowed_hosts: tuple[str, ...] = Field(default=("*",), min_length=1)
    max_body_bytes: PositiveInt = 64_000_000
    body_timeout_s: PositiveFloat = 120.0
    max_prompt_chars: int = Field(20_000, gt=0, le=MAX_PROMPT_CHARS)
    fetch: FetchConfig = FetchConfig()
    jobs: JobsConfig = JobsConfig()
    auth: AuthConfig = AuthConfig()
    webhooks: WebhooksConfig = WebhooksConfig()
    artifacts_url: Url = "data/artifacts"
    front: FrontConfig = FrontConfig()
    config_folder: str | None = None

    @model_validator(mode="after")
    def _models_are_distinct(self) -> Self:
        ids = [model.id for model in self.models]
        if len(set(ids)) < len(ids):
            raise ValueError(f"models: each id may stand once, got {ids}")
        return self

    def resolved(self, folder: Path | None) -> Self:
        """This configuration with every path absolute: `~` is the user's home, the rest is relative to `folder`.

        Raises ValueError that names the key of a relative path if `folder` is None, which means that nobody knows it.
        """
        jobs, auth = self.jobs, self.auth
        if jobs.database_url.startswith(SQLITE_PREFIX):
            database = _absolute("jobs.database_url", jobs.database_url.removeprefix(SQLITE_PREFIX), folder)
            jobs = jobs.model_copy(update={"database_url": SQLITE_PREFIX + database})
        if auth.keys_file is not None:
            auth = auth.model_copy(update={"keys_file": _absolute("auth.keys_file", auth.keys_file, folder)})
        changes: dict[str, Any] = {
            "auth": auth,
            "models": tuple(_resolved_model(model, folder) for model in self.models),
            "jobs": jobs,
            "lora_root": _absolute("lora_root", self.lora_root, folder),
            "artifacts_url": _absolute("artifacts_url", self.artifacts_url, folder),
        }
        return self.model_copy(update=changes)

    def refuse_missing_folders(self) -> None:
        """Raise ConfigRefused if the LoRA root is a local folder that does not exist."""
        if "://" not in self.lora_root and not Path(self.lora_root).is_dir():
            raise ConfigRefused(f"lora_root: there is no folder {self.lora_root}")


def _resolved_model(model: ModelConfig, folder: Path | None) -> ModelConfig:
    """A checkpoint that is no folder is a hub id, and stays as it is."""
    folders = {name: _absolute(f"models[].{name}", getattr(model, name), folder) for name in MODEL_FOLDERS}
    checkpoint = _expanded("models[].checkpoint", model.checkpoint)
    local = (folder or Path("/")) / checkpoint
    if model.checkpoint not in EMBEDDED and local.is_dir():
        folders["checkpoint"] = str(local)
    return model.model_copy(update=folders)


def _absolute(key: str, url: str, folder: Path | None) -> str:
    """A local path or `file://` URL as an absolute path; any other URL as it is."""
    local = url.removeprefix("file://")
    if "://" in local:
        return url
    path = _expanded(key, local)
    if folder is None and not path.is_absolute():
        raise ValueError(
            f"{key}: {url!r} is relative, and the folder of the config file is not known here;"
            " write an absolute path, or start the service with `edits-server run`"
        )
    return str(path if folder is None else (folder / path).absolute())


def _expanded(key: str, path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{key}: {path!r} names a home folder that does not exist") from error
