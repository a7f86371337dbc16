"""A change of the config under load: what clients and jobs notice of it.

    python -m benchmarks.rolling

The whole service with editors that sleep (`benchmarks.standin`), and clients that post five requests a second, follow
each to its end and fetch its image. Meanwhile a changed config is deployed twice, as `serve deploy` does: first with
another `user_config`, which no replica should be replaced for, then with other `args`, which all are. Before the
second, an edit begins that takes longer than anything else. Fails if a client sees an error, a request does not
succeed, or an edit is cut off.
"""

import argparse
import asyncio
import itertools
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from ray import serve

from benchmarks.standin import EDITOR, STEP_S, body, cluster, declared, deploy, wait_until_running

RATE = 5.0
STEPS, LONG_STEPS = 4, 150
EDITORS, INGRESSES = 4, 2
QUOTA = 20
SETTLE_S = 6.0


@dataclass
class Noticed:
    """What clients saw: answers that are no success by route, how requests ended, lost attempts, seconds to the end."""

    errors: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    attempts_lost: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class Client:
    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self.noticed = Noticed()

    async def call(self, what: str, method: str, url: str, **arguments: Any) -> httpx.Response | None:
        """The answer if it is a success; anything else counts as an error."""
        try:
            answer = await self._http.request(method, url, **arguments)
        except httpx.TransportError as error:
            self.noticed.errors[f"{what}: {type(error).__name__}"] += 1
            return None
        if answer.status_code != 200:
            self.noticed.errors[f"{what}: HTTP {answer.status_code} {answer.text[:200]}"] += 1
            return None
        return answer

    async def follow(self, steps: int, seed: int) -> None:
        """One request from its POST to its image."""
        started = time.monotonic()
        posted = await self.call("POST", "POST", "/v1/inference", json=body(steps, seed))
        if posted is None:
            return
        urls = posted.json()
        while True:
            await asyncio.sleep(0.5)
            status = await self.call("status", "GET", urls["status_url"])
            if status is not None and status.json()["status"] in ("succeeded", "failed", "canceled"):
                break
        self.noticed.ends[status.json()["status"]] += 1
        self.noticed.seconds.append(time.monotonic() - started)
        result = await self.call("result", "GET", urls["result_url"])
        if result is not None and result.json()["outputs"] is not None:
            lost = result.json()["metadata"]["attempts_lost"]
            self.noticed.attempts_lost += itertools.chain.from_iterable(lost)
            for image in result.json()["outputs"]["images"]:
                await self.call("image", "GET", image["url"])

    async def keep_posting(self, until: asyncio.Event) -> int:
        """Post at the rate until told to stop, and wait for all ends; how many requests that were."""
        started, following = time.monotonic(), []
        for number in itertools.count():
            if until.is_set():
                break
            following.append(asyncio.create_task(self.follow(STEPS, number)))
            await asyncio.sleep(max(0.0, started + (number + 1) / RATE - time.monotonic()))
        await asyncio.gather(*following)
        return len(following)


def processes() -> dict[str, set[int]]:
    """The running replicas' processes, by deployment."""
    deployments = serve.context._get_global_client().get_serve_details()["applications"]["edits"]["deployments"]
    return {
        name: {replica["pid"] for replica in details["replicas"] if replica["state"] == "RUNNING"}
        for name, details in deployments.items()
    }


async def until_replaced(old: dict[str, set[int]], seconds: float = 180) -> float:
    """Wait until every process is another, as many as before; how long that took."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        # While the application is built anew, Serve names no deployments.
        new = await asyncio.to_thread(processes)
        if all(len(new.get(name, ())) == len(old[name]) and new[name].isdisjoint(old[name]) for name in old):
            return time.monotonic() - started
        await asyncio.sleep(0.5)
    raise TimeoutError(f"after {seconds:g} s not every replica is another: {serve.status()}")


def configured(folder: Path, ingress: dict[str, Any], **args: Any) -> dict[str, Any]:
    deployments = [
        {
            "name": "Ingress",
            "autoscaling_config": bounds(INGRESSES) | {"metrics_interval_s": 1},
            "user_config": ingress,
        },
        {"name": EDITOR, "autoscaling_config": bounds(EDITORS)},
    ]
    return declared(folder, deployments, **args)


def bounds(replicas: int) -> dict[str, Any]:
    return {"min_replicas": replicas, "max_replicas": replicas}


async def drill(url: str, folder: Path) -> list[str]:
    """What went wrong."""
    wrong = []
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=100)) as http:
        client, stop = Client(http), asyncio.Event()
        posting = asyncio.create_task(client.keep_posting(stop))
        await asyncio.sleep(SETTLE_S)

        old = await asyncio.to_thread(processes)
        in_place = {"max_queued_per_tenant": QUOTA, "log_level": "DEBUG"}
        await asyncio.to_thread(deploy, configured(folder, in_place))
        changed = time.monotonic()
        many = body(STEPS)
        many["prompts"] *= QUOTA + 1
        while (answer := await http.post("/v1/inference", json=many)).status_code == 200:
            await http.delete(f"/v1/requests/{answer.json()['request_id']}")
            await asyncio.sleep(0.2)
        code = answer.json()["detail"]["error"]["code"]
        print(f"user_config: in effect after {time.monotonic() - changed:.1f} s: {code}")
        await asyncio.sleep(SETTLE_S)
        if await asyncio.to_thread(processes) != old:
            wrong.append("replicas were replaced for a user_config")

        long = asyncio.create_task(client.follow(LONG_STEPS, 10**6))
        await asyncio.sleep(3)
        # Without the quota, which is lower than the line that one editor less makes.
        await asyncio.to_thread(deploy, configured(folder, {"log_level": "INFO"}, max_prompt_chars=10_000))
        took = await until_replaced(old)
        print(f"args: all {EDITORS + INGRESSES} replicas were replaced after {took:.1f} s")
        await asyncio.sleep(SETTLE_S)
        stop.set()
        sent = await posting + 1
        await long
    noticed = client.noticed
    print(f"an edit takes {STEPS * STEP_S:g} s, the long one {LONG_STEPS * STEP_S:g} s")
    print(
        f"{sent} requests at {RATE:g}/s: {dict(noticed.ends)}; errors seen by clients: {dict(noticed.errors) or 'none'}"
    )
    seconds = sorted(noticed.seconds)
    print(f"POST to the end, s: median {seconds[len(seconds) // 2]:.2f}, longest but the long one {seconds[-2]:.2f}")
    print(f"attempts lost: {noticed.attempts_lost or 'none'}")
    if noticed.errors:
        wrong.append("clients saw errors")
    if noticed.ends["succeeded"] != sent:
        wrong.append("not every request succeeded")
    if noticed.attempts_lost:
        wrong.append("edits were cut off")
    return wrong


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as name, cluster() as url:
        deploy(configured(Path(name), {"log_level": "INFO"}))
        wait_until_running()
        wrong = asyncio.run(drill(url, Path(name)))
    if wrong:
        raise SystemExit("; ".join(wrong))
    print("Nobody noticed.")


if __name__ == "__main__":
    main()
