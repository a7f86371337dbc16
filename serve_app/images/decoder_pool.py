"""A pool of processes that decode control images, so that no file can delay or crash the service."""

import asyncio
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from typing import Any, Literal

from serve_app.concurrency.budget import Budget
from serve_app.config import FetchConfig
from serve_app.errors import ControlImageInvalid, Overloaded
from serve_app.images.decode import ImageFacts

logger = logging.getLogger(__name__)

# Processes per ingress. One tenant may use all but one, so that another tenant's image need not wait.
PROCESSES = 3
# Memory limit of a decoder: the interpreter with its libraries, some copies of the file, and some copies of four bytes
# for each pixel. At 40 megapixels, an animated WebP needed the most: 0.75 GB.
MEMORY_BYTES, FILE_COPIES, MEMORY_BYTES_PER_PIXEL = 256 * 2**20, 4, 24
# How long a file waits for a process (s). A request of hundreds of images waits for its own.
PATIENCE_S = 120.0
START_S = 60.0
# Wall-clock time per second of CPU time. A process that is not finished by then had no CPU: the machine is busy.
WALL_FACTOR = 6


class Decoders:
    """Decodes control images in processes, which start when they are first needed and are replaced when they end.

    Belongs to one event loop. Call `close` at the end.
    """

    def __init__(self, limits: FetchConfig, share: int = PROCESSES) -> None:
        """One tenant has at most `share` of the processes at a time."""
        self._limits = limits
        self._places = Budget(PROCESSES, share, PATIENCE_S, "decoding a control image")
        self._idle: list[Process] = []
        self._running: set[Process] = set()

    async def facts(self, data: bytes, exif: Literal["ignore", "apply"], tenant: str) -> ImageFacts:
        """The facts about a control image's file. Raises ControlImageInvalid, with only the reason, or Overloaded."""
        with self._places.hold(tenant) as place:
            await place.take(1)
            answer = await self._ask(data, exif)
        if "invalid" in answer:
            raise ControlImageInvalid(answer["invalid"])
        facts = answer["facts"]
        size, conversions = tuple(facts["size"]), tuple(facts["conversions"])
        return ImageFacts(size, facts["exif_orientation"], conversions, facts["format"])

    async def close(self) -> None:
        """End every process. Nothing can be decoded afterwards."""
        for process in self._running:
            _kill(process)
        for process in list(self._running):
            await process.wait()

    async def _ask(self, data: bytes, exif: str) -> dict[str, Any]:
        process = await self._process()
        order = {
            "size": len(data),
            "exif": exif,
            "max_pixels": self._limits.max_pixels,
            "cpu_s": self._limits.decode_timeout_s,
        }
        answer = b""
        try:
            async with asyncio.timeout(WALL_FACTOR * self._limits.decode_timeout_s):
                answer = await _exchange(process, json.dumps(order).encode() + b"\n", data)
                if not answer:
                    raise self._why_ended(await process.wait())
        except TimeoutError as error:
            raise Overloaded("this service is too busy to decode a control image; send it again later") from error
        finally:
            # A process that was interrupted within a file, for example by a cancelled request, is of no more use.
            if answer:
                self._idle.append(process)
            else:
                _kill(process)
        return json.loads(answer)

    def _why_ended(self, code: int) -> Exception:
        """The error for a process that ended within a file: the file's fault, or the service's."""
        if code == -signal.SIGPROF:
            return ControlImageInvalid(f"decoding it takes longer than {self._limits.decode_timeout_s:g} s")
        logger.error("a decoder ended with %s in the middle of a control image", code)
        if code in (-signal.SIGKILL, -signal.SIGTERM):
            # The kernel kills processes when memory is short.
            return Overloaded("this service is too busy to decode a control image; send it again later")
        return ControlImageInvalid("it makes the decoder fail")

    async def _process(self) -> Process:
        self._running = {process for process in self._running if process.returncode is None}
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
        return await self._start()

    async def _start(self) -> Process:
        limits = self._limits
        memory_bytes = MEMORY_BYTES + FILE_COPIES * limits.max_bytes + MEMORY_BYTES_PER_PIXEL * limits.max_pixels
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-W", "ignore", "-m", "serve_app.images.decoder_process", str(memory_bytes)),
                stdin=PIPE,
                stdout=PIPE,
                # Code that decodes foreign bytes has no access to secrets in the service's environment.
                env={"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
            )
        except OSError as error:
            # The system has no memory, process or file descriptor left.
            logger.exception("a decoder cannot be started")
            raise _cannot_start() from error
        self._running.add(process)
        is_ready = False
        try:
            async with asyncio.timeout(START_S):
                is_ready = bool(await _read_line(process))
        except TimeoutError:
            logger.warning("a decoder took longer than %s s to start", START_S)
        finally:
            if not is_ready:
                _kill(process)
        if not is_ready:
            raise _cannot_start()
        return process


def _cannot_start() -> Overloaded:
    return Overloaded("this service cannot decode control images at the moment; send it again later")


async def _exchange(process: Process, head: bytes, data: bytes) -> bytes:
    """The line with a process's answer; empty if the process has ended."""
    assert process.stdin is not None
    try:
        process.stdin.writelines((head, data))
        await process.stdin.drain()
    except ConnectionError:
        return b""
    return await _read_line(process)


async def _read_line(process: Process) -> bytes:
    """A complete line, otherwise b"": a process that ends may leave part of a line."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    return line if line.endswith(b"\n") else b""


def _kill(process: Process) -> None:
    if process.returncode is None:
        process.kill()
