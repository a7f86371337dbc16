"""Processes that decode: what a file can do to one of them, it does to no other file."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from contextlib import suppress
from functools import cache

import PIL.Image
import psutil
import pytest

from serve_app.config import FetchConfig
from serve_app.errors import ControlImageInvalid, Overloaded
from serve_app.images import decoder_pool
from serve_app.images.decode import EXIF_ORIENTATION, ImageFacts, decode
from serve_app.images.decoder_pool import PROCESSES, Decoders
from tests.unit.heavy_images import jpeg_of_scans, png_of_pixels, saved

SMALL = saved(PIL.Image.new("RGB", (60, 40), "red"), "PNG")


@cache
def heavy() -> bytes:
    """About a second of a CPU."""
    return jpeg_of_scans(30, (7000, 5700))


@pytest.fixture
async def make_decoders():
    made = []

    def make(share: int = PROCESSES, **limits: object) -> Decoders:
        made.append(Decoders(FetchConfig(**limits), share))
        return made[-1]

    yield make
    for decoders in made:
        await decoders.close()


# Decoders of an application that other tests share.
of_others: list[psutil.Process] = []


@pytest.fixture(autouse=True)
def know_others() -> Iterator[None]:
    of_others[:] = workers()
    yield
    of_others.clear()


def workers() -> list[psutil.Process]:
    """The processes that decode for this test."""
    found = []
    for child in psutil.Process().children():
        # Another test's may end meanwhile.
        with suppress(psutil.NoSuchProcess):
            if "serve_app.images.decoder_process" in child.cmdline() and child not in of_others:
                found.append(child)
    return found


async def refusal(decoders: Decoders, data: bytes) -> str:
    with pytest.raises(ControlImageInvalid) as caught:
        await decoders.facts(data, "ignore", "")
    return caught.value.message


async def test_facts_are_those_of_the_engine(make_decoders):
    image = PIL.Image.new("RGBA", (60, 40), "red")
    image.getexif()[EXIF_ORIENTATION] = 6
    data = saved(image, "PNG", exif=image.getexif())
    decoders = make_decoders()
    for exif in ("ignore", "apply"):
        assert await decoders.facts(data, exif, "") == decode(data, exif).facts
    assert await decoders.facts(data, "apply", "") == ImageFacts((40, 60), 6, ("alpha dropped",), "png")


async def test_limits_and_reasons_reach_the_process(make_decoders):
    decoders = make_decoders(max_pixels=2399)
    assert await refusal(decoders, SMALL) == "it has 60x40 pixels, and at most 2399 are accepted"
    assert "not an image" in await refusal(decoders, b"x")


async def test_no_process_is_started_before_there_is_work_and_one_serves_many(make_decoders):
    decoders = make_decoders()
    assert workers() == []
    for _ in range(3):
        await decoders.facts(SMALL, "ignore", "")
    assert len(workers()) == 1
    await decoders.close()
    assert workers() == []


async def test_number_of_processes_is_limited(make_decoders):
    decoders = make_decoders()
    await asyncio.gather(*(decoders.facts(SMALL, "ignore", "") for _ in range(20)))
    assert len(workers()) <= PROCESSES


async def test_file_that_takes_too_long_is_stopped_and_the_next_is_decoded(make_decoders, monkeypatch):
    # However busy the machine is, the time of the CPU ends it.
    monkeypatch.setattr(decoder_pool, "WALL_FACTOR", 1000)
    decoders = make_decoders(decode_timeout_s=0.3)
    await decoders.facts(SMALL, "ignore", "")
    [before] = workers()
    assert await refusal(decoders, heavy()) == "decoding it takes longer than 0.3 s"
    assert not before.is_running()
    assert (await decoders.facts(SMALL, "ignore", "")).size == (60, 40)


async def test_each_file_has_its_own_time_limit(make_decoders, monkeypatch):
    monkeypatch.setattr(decoder_pool, "WALL_FACTOR", 1000)
    file = heavy()
    started = time.process_time()
    expected = decode(file, "ignore").facts
    decoders = make_decoders(decode_timeout_s=1.7 * (time.process_time() - started))
    for _ in range(4):
        assert await decoders.facts(file, "ignore", "") == expected


async def test_file_that_needs_too_much_memory_is_refused(make_decoders, monkeypatch):
    monkeypatch.setattr(decoder_pool, "MEMORY_BYTES_PER_PIXEL", 0)
    monkeypatch.setattr(decoder_pool, "MEMORY_BYTES", 128 * 2**20)
    decoders = make_decoders(max_bytes=1000)
    assert await refusal(decoders, png_of_pixels(6000, 6000)) == "decoding it takes more than 134 MB of memory"
    assert (await decoders.facts(SMALL, "ignore", "")).size == (60, 40)


async def begin(decoders: Decoders) -> "tuple[asyncio.Task[object], psutil.Process]":
    """A heavy file in the middle of being decoded, and the process that does it."""
    await decoders.facts(SMALL, "ignore", "")
    [process] = workers()
    before = sum(process.cpu_times())
    work = asyncio.create_task(decoders.facts(heavy(), "ignore", ""))
    while sum(process.cpu_times()) < before + 0.1:
        assert not work.done()
        await asyncio.sleep(0.01)
    return work, process


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGSEGV, ControlImageInvalid), (signal.SIGABRT, ControlImageInvalid), (signal.SIGKILL, Overloaded)],
)
async def test_process_that_dies_costs_one_file(make_decoders, number, error):
    """A decoder's crash is blamed on its file, the system's lack of memory on nobody."""
    decoders = make_decoders()
    work, process = await begin(decoders)
    os.kill(process.pid, number)
    with pytest.raises(error):
        await work
    assert (await decoders.facts(SMALL, "ignore", "")).size == (60, 40)


async def test_process_that_died_while_idle_is_replaced(make_decoders):
    decoders = make_decoders()
    await decoders.facts(SMALL, "ignore", "")
    [idle] = workers()
    idle.kill()
    while idle.is_running() and idle.status() != psutil.STATUS_ZOMBIE:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert (await decoders.facts(SMALL, "ignore", "")).size == (60, 40)


async def test_cancelled_file_stops_its_process(make_decoders):
    decoders = make_decoders()
    work, process = await begin(decoders)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    psutil.wait_procs([process], timeout=5)
    assert not process.is_running()
    assert (await decoders.facts(SMALL, "ignore", "")).size == (60, 40)


@pytest.mark.parametrize("ticks", [0, 1, 2, 3, 5, 8, 21])
async def test_cancelled_file_releases_its_process_at_any_moment(make_decoders, ticks):
    decoders = make_decoders()
    work = asyncio.create_task(decoders.facts(SMALL, "ignore", ""))
    for _ in range(ticks):
        await asyncio.sleep(0.01 if ticks % 2 else 0)
    work.cancel()
    await asyncio.wait([work])
    await asyncio.gather(*(decoders.facts(SMALL, "ignore", "") for _ in range(PROCESSES)))
    assert len(workers()) <= PROCESSES


async def test_one_tenants_heavy_files_do_not_hold_up_another(make_decoders):
    decoders = make_decoders(PROCESSES - 1)
    await asyncio.gather(*(decoders.facts(SMALL, "ignore", tenant) for tenant in ("red", "red", "blue")))
    attack = [asyncio.create_task(decoders.facts(heavy(), "ignore", "red")) for _ in range(6)]
    await asyncio.sleep(0.2)
    small = asyncio.create_task(decoders.facts(SMALL, "ignore", "blue"))
    done, _ = await asyncio.wait([small, *attack], return_when=asyncio.FIRST_COMPLETED)
    assert small in done
    for work in attack:
        work.cancel()
    await asyncio.wait(attack)


async def test_busy_machine_is_not_the_files_fault(make_decoders, monkeypatch):
    monkeypatch.setattr(decoder_pool, "WALL_FACTOR", 0.02)
    with pytest.raises(Overloaded):
        await make_decoders().facts(heavy(), "ignore", "")


async def test_process_that_cannot_start_is_not_the_files_fault(make_decoders, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Overloaded):
        await make_decoders().facts(SMALL, "ignore", "")


async def test_process_that_the_system_does_not_start_is_not_the_files_fault(make_decoders, monkeypatch):
    async def refused(*command: object, **options: object) -> None:
        raise BlockingIOError("no process left")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refused)
    with pytest.raises(Overloaded):
        await make_decoders().facts(SMALL, "ignore", "")


async def test_part_of_a_line_is_no_answer():
    """A process that dies may leave one."""
    process = await asyncio.create_subprocess_exec(*("printf", '{"fac'), stdin=PIPE, stdout=PIPE)
    assert await decoder_pool._read_line(process) == b""
    await process.wait()


def test_process_holds_no_secret_of_the_service(monkeypatch):
    monkeypatch.setenv("DATABASE_PASSWORD", "secret")

    async def environment() -> str:
        decoders = Decoders(FetchConfig())
        await decoders.facts(SMALL, "ignore", "")
        [process] = workers()
        found = str(process.environ())
        await decoders.close()
        return found

    assert "secret" not in asyncio.run(environment())


def test_process_imports_little():
    """It starts in a moment, and holds little memory: neither torch nor Ray nor the web framework."""
    program = "import serve_app.images.decoder_process, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "ray", "pydantic", "fastapi", "aiohttp"}.isdisjoint(loaded)
