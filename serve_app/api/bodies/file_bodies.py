"""The reader of one file: a form with one file, or the file itself as the body."""

from typing import Annotated, Any

from fastapi import Depends, Request

from serve_app.api.bodies import BodyReader, BodyRoute
from serve_app.api.bodies.multipart import FORM_DATA, is_multipart, read_form
from serve_app.errors import BodyInvalid


class FileReader(BodyReader):
    """A request that brings one file: `request.state.file` are its bytes."""

    async def prepare(self) -> None:
        """Raises BodyInvalid for a body that is not one file."""
        body = await self.body()
        # FastAPI does not ask for the body, since no parameter of the route is one.
        self._body = b""
        content_type = self.headers.get("content-type", "")
        self.state.file = _only_file(content_type, body) if is_multipart(content_type) else body
        if not self.state.file:
            raise BodyInvalid("the body has no file, or an empty one: send an image's file")


def _only_file(content_type: str, body: bytes) -> bytes:
    files = read_form(content_type, body).files
    if not files:
        raise BodyInvalid("the form has no file: send one part with a file name")
    if len(files) > 1:
        raise BodyInvalid(f"the form has {len(files)} files; send one per upload")
    return files[0].data


class FileRoute(BodyRoute):
    """A route that takes one file."""

    reader = FileReader


def _file(request: Request) -> bytes:
    file: bytes = request.state.file
    return file


FileOfRequest = Annotated[bytes, Depends(_file)]

_BINARY = {"type": "string", "format": "binary"}
# What OpenAPI says of such a body.
FILE_DOCS: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A form with one file, or the file itself with any Content-Type, such as `image/png`.",
        "content": {
            FORM_DATA: {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": _BINARY | {"description": "The image. The part may have any name."}},
                }
            },
            # Any other type does as well. Clients that are generated from the document know no types of images.
            "application/octet-stream": {"schema": _BINARY},
        },
    }
}
