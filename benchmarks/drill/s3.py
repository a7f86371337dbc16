"""The drill of an object store that fails: artifacts and LoRA root in S3, behind a proxy that makes calls fail.

python -m benchmarks.drill.s3 [NAME ...]

The store is moto's server and the client s3fs, as in production. Editors use the timed engine, and read control images
and adapters and store images as they always do. Requests are posted steadily during each fault. The exit code is 1 if a
request does not succeed, an image is made twice or differs from that of an undisturbed run, or a fault did not happen.
The drill takes five minutes.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import httpx

from benchmarks.drill import verdict
from benchmarks.drill.load import EVERYTHING, PROMPTS, Client, Order, make_undisturbed
from benchmarks.drill.notes import Notes
from benchmarks.drill.service import ROOT, DrillFailed, Service, conclude
from benchmarks.drill.store import Store
from tests.object_store import Choose, Fault, ObjectStore, credentials, no_fault, write_key
from tests.postgres import PostgresServer

SEED = 7
REQUESTS, EVERY_S = 12, 1.0
# The share of calls that fail, how long a slow answer takes, and how long an outage lasts (s).
SHARE, SLOW_S, OUTAGE_S = 0.2, 3.0, 20.0
LIMIT_S = 120
HEADER = (
    "| fault | calls | of these failed | requests | succeeded | edits | attempts lost | POSTs repeated "
    "| median image, s | slowest image, s |"
)


def a_share_of(faults: Iterable[Fault]) -> Choose:
    """Makes a random fifth of all calls fail."""
    randomness, faults = random.Random(SEED), tuple(faults)
    return lambda method, path: randomness.choice(faults) if randomness.random() < SHARE else None


DROPPED = (Fault.REFUSED, Fault.LOST, Fault.CUT)
CHOICES: dict[str, Choose] = {
    "none": no_fault,
    "dropped": a_share_of(DROPPED),
    "busy": a_share_of([Fault.BUSY, Fault.BROKEN]),
    "slow": a_share_of([Fault.SLOW]),
    "everything": a_share_of(set(Fault) - {Fault.EXPIRED}),
}
WHAT = {
    "none": "none",
    "dropped": "a fifth of the connections drops: before the call, before the answer, or in the middle of it",
    "busy": "a fifth of the calls is answered 503 SlowDown or 500",
    "slow": f"a fifth of the answers takes {SLOW_S:g} s",
    "everything": "all of these",
    "away": f"every connection drops for {OUTAGE_S:g} s",
    "expired": f"the key has expired; {OUTAGE_S:g} s later there is a new one",
}
NAMES = tuple(WHAT)


class S3Drill:
    """`run` one fault by name: it prints its row and returns the problems."""

    def __init__(self, s3: ObjectStore, folder: Path, notes: Notes, store: Store, client: Client) -> None:
        self._s3, self._folder, self._notes = s3, folder, notes
        self._store, self._client = store, client
        self._undisturbed: dict[tuple[int, bool], str] = {}
        self._refused = 0

    async def prepare(self) -> None:
        """Make each image once without a fault."""
        orders = [Order("plain", EVERYTHING), Order("with-lora", EVERYTHING, lora=True)]
        self._undisturbed = await make_undisturbed(self._client, orders)

    async def run(self, name: str) -> list[str]:
        orders = [
            Order(f"{name}{number}", (number % len(PROMPTS),), lora=number % 2 == 1) for number in range(REQUESTS)
        ]
        following = asyncio.create_task(self._store.follow())
        calls, repeated = self._s3.calls, self._client.asked_again + self._refused
        try:
            async with asyncio.timeout(LIMIT_S):
                ids, happened = await self._befall(name, orders)
        except TimeoutError:
            raise DrillFailed(f"{name}: not done after {LIMIT_S} s") from None
        finally:
            following.cancel()
        await self._store.look()
        answers = [await self._client.answer(request_id) for request_id in ids]
        problems = [] if happened or name == "none" else [f"{name}: no call failed"]
        for order, answer in zip(orders, answers, strict=True):
            problems += verdict.faults(order, answer, self._undisturbed)
        images = [image for order in orders for image in order.images]
        made = verdict.times_made(images, self._notes.of_image())
        if made != Counter({1: REQUESTS}):
            problems.append(f"{name}: edits by how often they were made: {dict(made)}")
        lost = [reason for image, found in (await self._store.reasons()).items() if image in images for reason in found]
        took = [self._store.history[image][-1].at - self._store.history[image][0].at for image in images]
        succeeded = sum(answer.status == "succeeded" for answer in answers)
        again = self._client.asked_again + self._refused - repeated
        cells = [WHAT[name], self._s3.calls - calls, happened.total(), REQUESTS, succeeded]
        cells += [sum(times * count for times, count in made.items()), len(lost), again]
        cells += [f"{statistics.median(took):.1f}", f"{max(took):.1f}"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        return problems + [f"{name}: an attempt was lost: {reason}" for reason in lost]

    async def _befall(self, name: str, orders: list[Order]) -> tuple[list[str], Counter[Fault]]:
        outages: dict[str, Callable[[], Awaitable[None]]] = {"away": self._be_away, "expired": self._expire}
        with self._s3.failing(CHOICES.get(name, no_fault)) as happened:
            outage = asyncio.create_task(self._outage(outages[name])) if name in outages else None
            posting = [asyncio.create_task(self._post(order, EVERY_S * at)) for at, order in enumerate(orders)]
            ids = await asyncio.gather(*posting)
            await self._client.wait_for_all(ids)
            if outage:
                await outage
        return ids, happened

    async def _outage(self, fault: Callable[[], Awaitable[None]]) -> None:
        """Begin the fault in the middle of the requests, while images are being made."""
        await asyncio.sleep(EVERY_S * REQUESTS / 3)
        await fault()

    async def _be_away(self) -> None:
        self._s3.choose = lambda method, path: Fault.REFUSED
        await asyncio.sleep(OUTAGE_S)
        self._s3.choose = no_fault

    async def _expire(self) -> None:
        self._s3.valid_key = "second"
        await asyncio.sleep(OUTAGE_S)
        write_key(self._folder, "second")

    async def _post(self, order: Order, after_s: float) -> str:
        """Post a request until it is accepted. A LoRA whose store is away is a 400 with a code of its own."""
        await asyncio.sleep(after_s)
        while True:
            headers = {"Idempotency-Key": order.name}
            answer = await self._client.ask("POST", "/v1/inference", json=order.body(), headers=headers)
            if answer.status_code != httpx.codes.BAD_REQUEST or "LORA_DOWNLOAD_FAILED" not in answer.text:
                return answer.raise_for_status().json()["request_id"]
            self._refused += 1
            await asyncio.sleep(0.5)


def upload_loras(s3: ObjectStore, bucket: str) -> None:
    root = ROOT / "tests/loras"
    for file in root.rglob("*.safetensors"):
        httpx.put(f"{s3.store_url}/{bucket}/loras/{file.relative_to(root)}", content=file.read_bytes())


async def drill(names: list[str]) -> list[str]:
    problems: list[str] = []
    with (
        PostgresServer(durable=True) as postgres,
        ObjectStore(slow_s=SLOW_S) as s3,
        tempfile.TemporaryDirectory(prefix="drill-key-") as folder,
    ):
        url, bucket = postgres.new_database(), s3.bucket()
        upload_loras(s3, bucket)
        args = {"artifacts_url": f"s3://{bucket}/artifacts", "lora_root": f"s3://{bucket}/loras"}
        environment = {"FSSPEC_S3": json.dumps({"endpoint_url": s3.url})} | credentials(Path(folder))
        with Service(url, "benchmarks.drill.reading:build", args, environment) as service:
            await service.start()
            async with Store(url) as store, Client([service.url]) as client:
                each = S3Drill(s3, Path(folder), service.notes, store, client)
                await each.prepare()
                print(HEADER + "\n" + "|---" * (HEADER.count("|") - 1) + "|", flush=True)
                for name in names:
                    problems += await each.run(name)
    return problems


async def main(names: list[str]) -> None:
    began = time.monotonic()
    try:
        problems = await drill(names)
    except DrillFailed as failure:
        problems = [str(failure)]
    conclude(began, problems)
    print("Every request succeeded, each image was made once and equals that of an undisturbed run.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(NAMES)}; default: all")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"there is no fault {', '.join(sorted(unknown))}")
    asyncio.run(main(arguments.names or list(NAMES)))
