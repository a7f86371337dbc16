"""Edit images with LoRAs on an edits service.

    from edits_client import Client, Lora

    client = Client("http://127.0.0.1:8000")  # or EDITS_URL, and EDITS_API_KEY for a key
    image = client.edit("photo.jpg", "make it night", loras=[Lora("my_job/my_job.safetensors", 0.8)])
    image.save("night.png")

`AsyncClient` has the same methods. Errors are in `edits_client.errors`, events in `edits_client.events`, and what the
service answers in `edits_client.models`.
"""

from edits_client import errors, events, models
from edits_client._async.client import AsyncClient
from edits_client._async.job import AsyncJob
from edits_client._async.sweep import AsyncSweep
from edits_client._sync.client import Client
from edits_client._sync.job import Job
from edits_client._sync.sweep import Sweep
from edits_client.bodies import Lora, Options
from edits_client.errors import ApiError, ConnectionFailed, EditFailed, EditsError, UnexpectedAnswer, WaitTimeout
from edits_client.images import Image
from edits_client.retries import Retries
from edits_client.version import VERSION as __version__
from edits_client.webhooks import WebhookInvalid, verify_webhook

__all__ = [
    "ApiError",
    "AsyncClient",
    "AsyncJob",
    "AsyncSweep",
    "Client",
    "ConnectionFailed",
    "EditFailed",
    "EditsError",
    "Image",
    "Job",
    "Lora",
    "Options",
    "Retries",
    "Sweep",
    "UnexpectedAnswer",
    "WaitTimeout",
    "WebhookInvalid",
    "__version__",
    "errors",
    "events",
    "models",
    "verify_webhook",
]
