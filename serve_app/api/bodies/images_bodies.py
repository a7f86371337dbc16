"""The reader of calls of OpenAI's images API: a form with the fields as texts and the images as files, or JSON.

File names and content types of the parts are whatever the client's library makes up, and decide nothing here.
"""

import asyncio
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders

from serve_app.api.bodies import BodyRoute
from serve_app.api.bodies.json_bodies import SOME_BODY, JsonRequest
from serve_app.api.bodies.limits import BodyMemory
from serve_app.api.bodies.multipart import FORM_DATA, Form, Part, is_multipart, read_form
from serve_app.api.error_shapes import OPENAI
from serve_app.errors import InvalidParameter
from serve_app.intake.admission.parts import NO_PARTS, PART, Parts
from serve_app.intake.openai.calls import RepeatableCall
from serve_app.schemas.openai import ImagesCall, ImagesEdit

# Sent by OpenAI's own clients: how often this call was made before.
RETRY_COUNT = "x-stainless-retry-count"
MASK, PROMPT, LORAS = "mask", "prompt", "loras"
# One image, one of a list, and one with its place in the list.
IMAGE_NAME = re.compile(r"image(\[[0-9]*\])?")
# How OpenAI's clients send a list of objects in a form: one part for each value, without the number of its object.
LORA_VALUE = re.compile(r"loras\[\]\[(\w+)\]")


class ImagesReader(JsonRequest):
    """A call. FastAPI sees a form as JSON of its fields.

    `request.state.parts` are the images of a form, and `request.state.repeatable` is a RepeatableCall or None.
    """

    async def prepare(self) -> None:
        """Raises BodyInvalid, InvalidParameter and Overloaded."""
        # `self.headers` would keep the Content-Type that is replaced below.
        content_type, content = Headers(scope=self.scope).get("content-type", ""), await self.raw()
        if not is_multipart(content_type):
            self.state.parts = NO_PARTS
            self.state.repeatable = await self._repeatable({"": content})
            self.read(content)
            return
        form = read_form(content_type, content, long_texts=("image", "image[]"))
        del content
        # The boundary between the parts may differ from one repeat to the next.
        contents = {f"{index} {part.is_file} {part.name}": part.data for index, part in enumerate(form.parts)}
        self.state.repeatable = await self._repeatable(contents)
        self._json, self.state.parts = read_fields(form)
        self._some = SOME_BODY
        headers = MutableHeaders(raw=list(self.scope["headers"]))
        headers["content-type"] = "application/json"
        self.scope = {**self.scope, "headers": headers.raw}

    async def _repeatable(self, contents: Mapping[str, bytes]) -> RepeatableCall | None:
        """How repeats of this call are recognised; None for a client that does not number its calls."""
        count = Headers(scope=self.scope).get(RETRY_COUNT, "")
        if not (count.isascii() and count.isdigit()):
            return None
        sha256 = await asyncio.to_thread(_digest, get_route_path(self.scope), contents)
        return RepeatableCall(sha256, is_repeat=count.strip("0") != "")

    async def release(self, call: ImagesCall) -> None:
        """Free the images of a call that is answered much later. Its other fields stay."""
        call.drop_images()
        self.state.parts.files.clear()
        parsed = await self.json()
        if isinstance(parsed, dict):
            parsed.clear()
        memory: BodyMemory = self.state.memory
        memory.release()


class ImagesRoute(BodyRoute):
    """A route of OpenAI's images API."""

    reader = ImagesReader
    error_shape = OPENAI


@cache
def form_docs(schema: type[ImagesCall]) -> dict[str, Any]:
    """What OpenAPI says of a form with these fields, in addition to the JSON that FastAPI describes by itself."""
    described = schema.model_json_schema(ref_template="#/components/schemas/{model}")
    fields = {name: field for name, field in described["properties"].items() if name not in ("images", MASK)}
    fields[LORAS] = {"type": "string", "description": f"{fields[LORAS]['description']} A list of objects."}
    required = described["required"]
    if "image" in fields:
        file = {"type": "string", "format": "binary"}
        fields["image"] = {"type": "array", "items": file, "description": "The images to edit, as files."}
        required = [*required, "image"]
    form = {"schema": {"type": "object", "required": required, "properties": fields}}
    return {"requestBody": {"content": {FORM_DATA: form}}}


def read_fields(form: Form) -> tuple[dict[str, Any], Parts]:
    """The fields of a form, with its images under `image`. Raises InvalidParameter or BodyInvalid.

    An empty text means that the field was not sent, except for the prompt.
    """
    fields: dict[str, Any] = {}
    images: list[str] = []
    files: dict[str, bytes] = {}
    loras: dict[str, list[str]] = {}
    for part in form.parts:
        if not part.data and (part.is_file or part.name != PROMPT):
            continue
        if IMAGE_NAME.fullmatch(part.name):
            images.append(_image(part, files))
        elif part.is_file:
            _add_file(part, fields)
        elif value := LORA_VALUE.fullmatch(part.name):
            loras.setdefault(value[1], []).append(part.text())
        else:
            _add_text(part, fields)
    if images:
        fields["image"] = images
    if loras:
        _add_loras(loras, fields)
    return fields, Parts(files)


def _image(part: Part, files: dict[str, bytes]) -> str:
    """An image as a control image's string: its file, or the URL or base64 that is sent in its place."""
    if not part.is_file:
        return part.text()
    name = f"image {len(files)}"
    files[name] = part.data
    return PART + name


def _add_file(part: Part, fields: dict[str, Any]) -> None:
    if part.name != MASK and part.name in ImagesEdit.model_fields:
        raise InvalidParameter(f"{part.name} is sent as a file; send it as a text", {"parameter": part.name})
    fields[part.name] = "a file"


def _add_text(part: Part, fields: dict[str, Any]) -> None:
    name, text = part.name, part.text()
    if name.startswith(f"{LORAS}["):
        raise InvalidParameter(
            f'{part.shown_name} is not understood: send the list as JSON in one part {LORAS}, [{{"path": "..."}}]',
            {"parameter": LORAS},
        )
    if fields.setdefault(name, text) != text:
        raise InvalidParameter(f"{part.shown_name} is sent twice, with different values", {"parameter": name})


def _add_loras(values: Mapping[str, list[str]], fields: dict[str, Any]) -> None:
    """Add the list of objects that came as one part for each value."""
    if LORAS in fields:
        raise InvalidParameter(f"{LORAS} is sent as JSON and in parts; send one of them", {"parameter": LORAS})
    if len({len(column) for column in values.values()}) > 1:
        raise InvalidParameter(
            f"{LORAS}: not every entry has the same keys, so that parts like {LORAS}[][path] do not say which value "
            f"belongs to which entry: send the list as JSON in one part {LORAS}",
            {"parameter": LORAS},
        )
    fields[LORAS] = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def _digest(path: str, contents: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256(path.encode())
    for name, content in contents.items():
        # With the lengths, no two lists of contents run together.
        digest.update(f"\0{len(name)} {len(content)} {name}\0".encode())
        digest.update(content)
    return digest.hexdigest()
