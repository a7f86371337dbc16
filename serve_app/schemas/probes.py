"""The bodies of answers about this process and about the readiness of the service."""

from typing import Literal

from pydantic import ConfigDict, Field

from serve_app.schemas.catalogue import PresetProblem
from serve_app.schemas.documented import Answer
from serve_app.telemetry.start_progress import StartState


class Health(Answer):
    """This process answers."""

    status: Literal["healthy"] = Field("healthy", description="Always healthy.")


class BrokenPreset(PresetProblem):
    """A preset that cannot be used at the moment, and why."""

    name: str = Field(description="The preset's name in the `user_config` of the ingress.")


class EditorStart(Answer):
    """How far the start of an editor is."""

    state: StartState = Field(
        description="`starting`: nothing is read yet. `downloading`: a remote checkpoint to the node's disk. "
        "`loading`: weights to where they are needed. `preparing`: they are there; the editor compiles and warms up."
    )
    bytes_read: int = Field(description="Bytes that it has read in this state, or before it, if it is `preparing`.")
    bytes: int = Field(description="Bytes that it has to read. 0: not known yet.")


class Readiness(Answer):
    """Whether every configured model has a running editor. Broken presets do not make the service unready."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "ready": False,
                    "waiting_for": ["qwen_image_edit"],
                    "editors": {
                        "qwen_image_edit": {"state": "loading", "bytes_read": 21474836480, "bytes": 57705037824}
                    },
                    "broken_presets": [
                        {
                            "name": "house-style",
                            "code": "LORA_NOT_FOUND",
                            "message": "there is no LoRA file 'my_lora_job/my_lora.safetensors' under the LoRA root",
                        }
                    ],
                }
            ]
        }
    )

    ready: bool = Field(description="Whether no model waits for an editor.")
    waiting_for: list[str] = Field(
        description="The models that have no running editor and are not scaled to zero; tiers with own editors "
        "likewise, as `<model id>-<tier>`."
    )
    broken_presets: list[BrokenPreset] = Field(
        description="The presets that requests cannot use at the moment, by name. Each ingress checks them by itself."
    )
    editors: dict[str, EditorStart] = Field(
        description="The progress of one starting editor of each name in `waiting_for`, if it reports one."
    )
