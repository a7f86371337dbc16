"""The requests of a drill, and the client that repeats each request until it is answered."""

import asyncio
import base64
import hashlib
import io
import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import httpx
import PIL.Image

from benchmarks.drill.notes import QUICK, TIMED
from benchmarks.drill.service import MODEL, ROOT, DrillFailed

LORAS = [{"path": "my_lora_job/my_lora.safetensors", "network_multiplier": 1.0}]
STEPS = 5
# The drill's images are small and few, so that an undisturbed run of each is cheap.
PROMPTS = (
    {"prompt": "sks at night", "seed": 1, "width": 64, "height": 64},
    {"prompt": "sks in the snow", "seed": 2, "width": 96, "height": 64},
    {"prompt": "sks by the sea", "seed": 3, "width": 64, "height": 96},
)
EVERYTHING = tuple(range(len(PROMPTS)))
ENDED = ("succeeded", "failed", "canceled")
PAUSE_S = 0.3


@dataclass(frozen=True)
class Order:
    """A request of the drill: its name, the numbers of its prompts, and whether it uses the sample LoRA.

    A `timed` or `quick` request takes a fixed time for each step and computes nothing.
    """

    name: str
    prompts: tuple[int, ...]
    lora: bool = False
    timed: bool = False
    quick: bool = False
    steps: int = STEPS

    @property
    def images(self) -> list[str]:
        """Names of its images in the notes and in the database."""
        return [f"{self.name}.{index}" for index in range(len(self.prompts))]

    @property
    def contents(self) -> list[tuple[int, bool]]:
        """The expected content of each image: the number of its prompt, and whether it uses the LoRA."""
        return [(prompt, self.lora) for prompt in self.prompts]

    def body(self) -> dict[str, Any]:
        # Without guidance the negative prompt has no effect, so it can carry the image's name.
        common = {"sample_steps": self.steps, "guidance_scale": 1, "ctrl_img": CONTROL}
        if self.timed or self.quick:
            common |= {"prompt": QUICK if self.quick else TIMED}
        prompts = [
            PROMPTS[prompt] | common | {"neg": image} for prompt, image in zip(self.prompts, self.images, strict=True)
        ]
        return {"model": MODEL, "prompts": prompts, "loras": LORAS if self.lora else [], "output_format": "png"}


def make_orders(count: int, randomness: random.Random, steps: int = STEPS) -> list[Order]:
    """Requests for one image each; every tenth is for two."""
    return [
        Order(
            f"r{number}",
            tuple(randomness.randrange(len(PROMPTS)) for _ in range(2 if number % 10 == 0 else 1)),
            randomness.random() < 0.5,
            steps=steps,
        )
        for number in range(count)
    ]


def control_image() -> str:
    image = PIL.Image.open(ROOT / "samples/astronaut.jpg").resize((96, 64))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


CONTROL = control_image()


@dataclass(frozen=True)
class Answer:
    """The end of a request: the reported images by number, each with a digest of its pixels."""

    status: str
    error: str | None
    images: tuple[tuple[int, str], ...]


class Client:
    """Sends requests to each address in turn, and repeats those that are not answered: processes die in a drill."""

    def __init__(self, urls: Sequence[str], timeout_s: float = 20) -> None:
        self._http = httpx.AsyncClient(timeout=timeout_s)
        self._urls = itertools.cycle(urls)
        self.asked_again = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def submit(self, order: Order) -> str:
        """Post a request with its name as Idempotency-Key. Returns the request id."""
        answer = await self.ask("POST", "/v1/inference", json=order.body(), headers={"Idempotency-Key": order.name})
        return answer.raise_for_status().json()["request_id"]

    async def cancel(self, request_id: str) -> str:
        """Cancel a request. Returns the status in the answer."""
        answer = await self.ask("DELETE", f"/v1/requests/{request_id}")
        return answer.raise_for_status().json()["status"]

    async def wait(self, request_id: str) -> str:
        """Wait until a request has ended. Returns its status."""
        while (status := await self._status(request_id)) not in ENDED:
            await asyncio.sleep(PAUSE_S)
        return status

    async def wait_for_all(self, request_ids: Iterable[str]) -> None:
        """Wait for one after the other, so that waiting causes little load."""
        for request_id in request_ids:
            await self.wait(request_id)

    async def answer(self, request_id: str) -> Answer:
        """Fetch a request's result and every image in it."""
        result = (await self.ask("GET", f"/v1/requests/{request_id}/result")).raise_for_status().json()
        images = []
        # A failed request also reports the images that were made.
        for output in result["outputs"]["images"] if result["outputs"] else result["metadata"].get("partial", []):
            path = httpx.URL(output["url"]).path
            image = (await self.ask("GET", path)).raise_for_status().content
            images.append((int(path.rpartition("/")[2]), digest(image)))
        return Answer(result["status"], result["error"], tuple(images))

    async def ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Send a request until the application itself answers it, with another status than 5xx."""
        while True:
            try:
                answer = await self._http.request(method, next(self._urls) + path, **arguments)
            except httpx.TransportError:
                answer = None
            if answer is not None and _is_the_applications(answer):
                return answer
            self.asked_again += 1
            await asyncio.sleep(PAUSE_S)

    async def _status(self, request_id: str) -> str:
        return (await self.ask("GET", f"/v1/requests/{request_id}/status")).raise_for_status().json()["status"]


async def make_undisturbed(client: Client, orders: Iterable[Order]) -> dict[tuple[int, bool], str]:
    """Digests of the images that the service makes while nothing is killed, by content.

    Raises DrillFailed if an image is missing.
    """
    digests = {}
    for order in orders:
        request_id = await client.submit(order)
        await client.wait(request_id)
        answer = await client.answer(request_id)
        if len(answer.images) != len(order.images):
            raise DrillFailed(f"the undisturbed run ended with {answer}")
        digests |= {order.contents[number]: digest for number, digest in answer.images}
    return digests


def _is_the_applications(answer: httpx.Response) -> bool:
    """Whether the application answered. Serve's proxy answers in plain text, with 404 as long as it has no routes."""
    kind = answer.headers.get("content-type", "")
    return answer.status_code < 500 and kind.startswith(("application/json", "image/"))


def digest(data: bytes) -> str:
    """A digest of an encoded image that depends on its size and pixels only."""
    image = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
