"""Parts: files that came in the same body as a request, which its control images name `part:<name>`."""

from dataclasses import dataclass, field

from serve_app.errors import ControlImageInvalid
from serve_app.schemas.requests import InferenceRequest
from serve_app.schemas.text import escaped

# The string of a control image that is a part of the body starts with this; the part's name follows.
PART = "part:"
# How many characters of a part's name an error quotes.
NAME_SHOWN = 60


def is_part(image: str) -> bool:
    """Whether a control image's string names a part of the body."""
    return image.startswith(PART)


@dataclass(frozen=True)
class Parts:
    """The parts of a body besides the request itself: the content of each file by name, and the names of the texts."""

    files: dict[str, bytes] = field(repr=False)
    texts: frozenset[str] = frozenset()

    def file(self, image: str) -> bytes:
        """The file that `part:<name>` names. Raises ControlImageInvalid, whose message is only the reason."""
        name = image.removeprefix(PART)
        shown = repr(escaped(name, NAME_SHOWN))
        if name in self.texts:
            raise ControlImageInvalid(f"the part {shown} is a text; send it as a file, which has a file name")
        if name not in self.files:
            raise ControlImageInvalid(
                f"the body has no part {shown}; send multipart/form-data with a file of that name"
            )
        return self.files[name]

    def unused(self, request: InferenceRequest) -> list[str]:
        """The names of the parts that no prompt of the request refers to."""
        named = {image for prompt in request.prompts for image in prompt.all_images}
        return sorted(name for name in self.texts.union(self.files) if PART + name not in named)


NO_PARTS = Parts({})
