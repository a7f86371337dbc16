"""The layout of artifact storage: the key of every kind of file. No other module builds or parses a key.

controls/<sha256>                  a control image as the client sent it
pictures/<sha256><suffix>          a finished image
loras/<sha256>.safetensors         an adapter that a client named by URL
results/<request id>/<index>.json  the record of a finished image, which its editor writes last
adapters/<adapter id>.sha256       the digest that an adapter's file had when it was first read
warm/<model>.json                  the adapters that an editor loads before it takes traffic
starting/<editor group>.json       how far the start of an editor is
previews/<request id>/watched      changes while somebody watches the step previews of a request's images
previews/<request id>/<index>.json the newest step preview of an image that is being made
"""

# Folders whose files belong to the requests that refer to them. The sweeper deletes a file that no request refers to.
IMAGES = "pictures"
REFERRED_FOLDERS = ("controls", "loras", IMAGES)
# The folder of the records; it has one folder per request.
RECORDS = "results"
# The folder of the step previews; it has one folder per request, which is deleted when the request ends.
PREVIEWS = "previews"


def control_image(sha256: str) -> str:
    """The key of a control image, by the digest (hex) of its file."""
    return f"controls/{sha256}"


def image(sha256: str, suffix: str) -> str:
    """The key of a finished image, by the digest (hex) of its file and the suffix of its format (".png")."""
    return f"{IMAGES}/{sha256}{suffix}"


def downloaded_adapter(sha256: str) -> str:
    """The key of an adapter's file that was downloaded, by the digest (hex) of the file."""
    return f"loras/{sha256}.safetensors"


def records(request_id: str) -> str:
    """The folder of the records of a request's images."""
    return f"{RECORDS}/{request_id}"


def record(request_id: str, index: int) -> str:
    """The key of the record that says that an image is complete, and what it is (an `EditDone` as JSON)."""
    return f"{records(request_id)}/{index}.json"


def previews(request_id: str) -> str:
    """The folder of the step previews of a request's images."""
    return f"{PREVIEWS}/{request_id}"


def preview(request_id: str, index: int) -> str:
    """The key of the newest step preview of an image."""
    return f"{previews(request_id)}/{index}.json"


def watched_marker(request_id: str) -> str:
    """The key of the file whose content changes while somebody watches a request's step previews."""
    return f"{previews(request_id)}/watched"


def request_of(key: str) -> str:
    """The id of the request that the record or step preview under this key belongs to."""
    return key.split("/")[1]


def adapter_digest(adapter_id: str) -> str:
    """The key of the digest that an adapter's file had when it was first read. Later reads must match it."""
    return f"adapters/{adapter_id}.sha256"


def warm_list(model: str) -> str:
    """The key of the list of adapters that the editors of a model load before they take traffic."""
    return f"warm/{model}.json"


def starting_editor(group: str) -> str:
    """The key of the report of an editor that starts, by its editor group."""
    return f"starting/{group}.json"
