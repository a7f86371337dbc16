"""URLs as the path of a LoRA: http, https and hf, and the pages of the model hub."""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit, urlunsplit

from serve_app.errors import LoraDownloadFailed
from serve_app.models.repeat_request import without_url_secrets

HTTPS_PORT = 443
HUB_SCHEME = "hf://"
HUB_PATH = re.compile(r"^hf://(?P<repository>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<file>.+)$", re.IGNORECASE)
# The path of a page on the model hub: /<owner>/<repository>/blob|tree/<revision>/...
HUB_PAGE = re.compile(r"^(/[^/]+/[^/]+)/(blob|tree)(/.*)$")


def is_url(path: str) -> bool:
    """Whether a LoRA's path is a URL, and so not a path below the LoRA root."""
    return path.lower().startswith(("http://", "https://", HUB_SCHEME))


def is_origin(url: str, hosts: Iterable[str]) -> bool:
    """Whether `url` is an https URL of one of these hosts (`host` or `host:port`) and its port. Raises ValueError."""
    parts = urlsplit(url)
    origins = ((host.hostname, host.port or HTTPS_PORT) for host in (urlsplit(f"//{name}") for name in hosts))
    return parts.scheme == "https" and (parts.hostname, parts.port or HTTPS_PORT) in origins


def hub_url(path: str, host: str) -> str:
    """The URL of `hf://owner/repository[@revision]/file` on the hub's `host`. Raises LoraDownloadFailed."""
    match = HUB_PATH.match(path)
    if match is None:
        raise LoraDownloadFailed(
            f"{path!r} names no file of the hub; write hf://owner/repository[@revision]/file.safetensors",
            {"lora_path": path},
        )
    return f"https://{host}/{match['repository']}/resolve/{match['revision'] or 'main'}/{match['file']}"


def file_url(url: str) -> str:
    """The URL of the file itself: `/blob/` of a hub page becomes `/resolve/`, and `?download=true` is dropped.

    Raises LoraDownloadFailed for a `/tree/` page, which is a folder.
    """
    parts = urlsplit(url)
    if parts.query == "download=true":
        parts = parts._replace(query="")
    page = HUB_PAGE.match(parts.path)
    if page is None:
        return urlunsplit(parts)
    if page[2] == "tree":
        name = without_url_secrets(url)
        raise LoraDownloadFailed(
            f"{name!r} is a folder page of the hub (/tree/); give the URL of one .safetensors file", {"lora_path": name}
        )
    return urlunsplit(parts._replace(path=f"{page[1]}/resolve{page[3]}"))
