"""The reader of requests for images: as JSON, or as a form whose part `request` is the JSON and whose other parts are
files that it names."""

from collections import Counter
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.datastructures import Headers, MutableHeaders

from serve_app.api.bodies import BodyRoute
from serve_app.api.bodies.json_bodies import JsonRequest
from serve_app.api.bodies.limits import BodyMemory
from serve_app.api.bodies.multipart import FORM_DATA, Form, Part, is_multipart, read_form
from serve_app.errors import BodyInvalid
from serve_app.intake.admission.parts import NO_PARTS, PART, Parts
from serve_app.schemas.requests import InferenceRequest

# The part that holds the JSON.
REQUEST = "request"


class InferenceReader(JsonRequest):
    """A request for images. FastAPI sees a form as the JSON in it; `request.state.parts` are its other parts."""

    async def prepare(self) -> None:
        """Raises BodyInvalid for a form that cannot be read, and Overloaded."""
        # `self.headers` would keep the Content-Type that is replaced below.
        content_type = Headers(scope=self.scope).get("content-type", "")
        if not is_multipart(content_type):
            self.state.parts = NO_PARTS
            await super().prepare()
            return
        form = read_form(content_type, await self.raw(), long_texts=(REQUEST,))
        self.state.parts = parts_of_form(form)
        self.read(json_part(form).data)
        headers = MutableHeaders(raw=list(self.scope["headers"]))
        headers["content-type"] = "application/json"
        self.scope = {**self.scope, "headers": headers.raw}


class InferenceRoute(BodyRoute):
    """A route that takes an InferenceRequest, as JSON or within a form."""

    reader = InferenceReader


def json_part(form: Form) -> Part:
    """The part that holds the JSON. Raises BodyInvalid unless there is one."""
    parts = form.named(REQUEST)
    if not parts:
        raise BodyInvalid(f"the form has no part named {REQUEST!r}, which holds the request as JSON")
    if len(parts) > 1:
        raise BodyInvalid(f"the form has {len(parts)} parts named {REQUEST!r}; send one")
    return parts[0]


def parts_of_form(form: Form) -> Parts:
    """All parts but the JSON. Raises BodyInvalid if two have the same name."""
    others = [part for part in form.parts if part.name != REQUEST]
    names = Counter(part.name for part in others)
    for part in others:
        if names[part.name] > 1:
            raise BodyInvalid(f"the form has {names[part.name]} parts named {part.shown_name}; give each its own name")
    files = {part.name: part.data for part in others if part.is_file}
    return Parts(files, frozenset(part.name for part in others if not part.is_file))


def _parts(request: Request) -> Parts:
    parts: Parts = request.state.parts
    return parts


PartsOfRequest = Annotated[Parts, Depends(_parts)]

# What OpenAPI says of the form, in addition to the JSON that FastAPI describes by itself.
FORM_DOCS: dict[str, Any] = {
    "requestBody": {
        "content": {
            FORM_DATA: {
                "schema": {
                    "type": "object",
                    "required": [REQUEST],
                    "properties": {REQUEST: {"$ref": "#/components/schemas/InferenceRequest"}},
                    "additionalProperties": {
                        "type": "string",
                        "format": "binary",
                        "description": f"A control image. The request names it `{PART}` and the name of this part.",
                    },
                },
                "encoding": {REQUEST: {"contentType": "application/json"}},
            }
        }
    }
}


async def release(request: Request, body: InferenceRequest) -> None:
    """Free the parsed body of a request that is answered much later. `body` is empty after that.

    The reader has dropped the bytes already.
    """
    body.prompts.clear()
    (body.model_extra or {}).clear()
    request.state.parts.files.clear()
    parsed = await request.json()
    if isinstance(parsed, dict):
        parsed.clear()
    memory: BodyMemory = request.state.memory
    memory.release()
