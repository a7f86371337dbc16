"""Requests that Schemathesis makes from the OpenAPI document: valid by it, and invalid in one place.

What it makes is broader than the mutations of `recipes`, and takes some thirty times as long.
"""

import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation.modes import GenerationMode

from tests.conformity import Document
from tests.fuzzing.asgi import HttpRequest
from tests.fuzzing.checks import LoggedErrors
from tests.fuzzing.requests import checked, fresh_world, no_names
from tests.fuzzing.tally import Tally
from tests.fuzzing.world import HOST, World

URL = "http://test"


def fuzz_by_schema(per_operation: int, seed_: int) -> Tally:
    """Send so many valid and so many invalid requests of each operation, which the seed decides."""
    folder, started = Path(tempfile.mkdtemp(prefix="fuzzing-")), time.monotonic()
    try:
        with LoggedErrors() as logged, no_names():
            tally = asyncio.run(_round(folder, per_operation, seed_))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for text in logged.found:
        tally.add_fault(f"schemathesis, seed {seed_}: logged: {text}")
    tally.rounds, tally.next_seed, tally.seconds = 1, seed_ + 1, time.monotonic() - started
    return tally


async def _round(folder: Path, per_operation: int, seed_: int) -> Tally:
    tally, chance = Tally(), random.Random(seed_)
    async with fresh_world(folder) as world:
        document = Document(world.app)
        for case in cases_of(world.document, per_operation, seed_):
            request = _by_somebody(_as_request(_about_something(case, world, chance)), world, chance)
            await checked(world.app, document, request, tally, f"schemathesis, seed {seed_}")
    return tally


def cases_of(document: dict[str, Any], per_operation: int, seed_: int) -> Iterator[Any]:
    """Schemathesis' cases: valid and invalid ones of each operation."""
    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            yield from _cases(operation, mode, per_operation, seed_)


def _cases(operation: Any, mode: GenerationMode, count: int, seed_: int) -> list[Any]:
    """Cases of an operation; none where nothing can be invalid."""
    cases: list[Any] = []

    @seed(seed_)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def collect(case: Any) -> None:
        cases.append(case)

    try:
        collect()
    except Unsatisfiable:
        return []
    return cases


def _about_something(case: Any, world: World, chance: random.Random) -> Any:
    """The case with ids that exist, mostly: random ones name nothing."""
    known = {name: chance.choice(world.ids[name]) for name in case.path_parameters or () if name in world.ids}
    if known and chance.random() < 0.8:
        case.path_parameters.update(known)
    return case


def _as_request(case: Any) -> HttpRequest:
    """A case as it goes over the wire."""
    options = case.as_transport_kwargs(base_url=URL)
    prepared = requests.Request(**options).prepare()
    body = prepared.body or b""
    url = urlsplit(str(prepared.url))
    headers = [(name.lower(), str(value)) for name, value in prepared.headers.items()]
    raw = [(name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in headers]
    data = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body)
    name = case.operation.definition.raw["operationId"]
    return HttpRequest(name, str(prepared.method), url.path, url.query, ((b"host", HOST), *raw), data)


def _by_somebody(request: HttpRequest, world: World, chance: random.Random) -> HttpRequest:
    """The request with a key, mostly: the document requires one, and a made-up one is refused at once."""
    caller = chance.choices(("red", "operator", ""), (8, 1, 1))[0]
    return request.with_header(b"x-api-key", world.keys[caller].encode()) if caller else request
