"""A pool of processes that decode control images, so that no file can hold up or end the service."""

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

# Processes of one ingress. One tenant gets all but one of them, so that another one's image need not wait for it.
PROCESSES = 3
# What a decoder may need: the interpreter with its libraries, some copies of the file, and for each pixel some copies
# of four bytes. Of 40 megapixels, an animated WebP took most: 0.75 GB.
MEMORY_BYTES, FILE_COPIES, MEMORY_BYTES_PER_PIXEL = 256 * 2**20, 4, 24
# How long a file waits for a process (s). A request of hundreds of images waits for its own.
PATIENCE_S = 120.0
START_S = 60.0
# A process that has not used up its time of a CPU by then has not had a CPU: the machine is busy.
WALL_FACTOR = 6


class Decoders:
    """Looks at control images. Starts a process when it is first needed, and another one for each that was ended.

    For one event loop; `close` it.
    """

    def __init__(self, limits: FetchConfig, share: int = PROCESSES) -> None:
        """One tenant has at most `share` of the processes at a time."""
        self._limits = limits
        self._places = Budget(PROCESSES, share, PATIENCE_S, "decoding a control image")
        self._idle: list[Process] = []
        self._running: set[Process] = set()

    async def facts(self, data: bytes, exif: Literal["ignore", "apply"], tenant: str) -> ImageFacts:
        """What `images.read` says of a file. Raises ControlImageInvalid, with the reason alone, or Overloaded."""
        with self._places.hold(tenant) as place:
            await place.take(1)
            answer = await self._ask(data, exif)
        if "invalid" in answer:
            raise ControlImageInvalid(answer["invalid"])
        facts = answer["facts"]
        return ImageFacts(tuple(facts["size"]), facts["exif_orientation"], tuple(facts["conversions"]))

    async def close(self) -> None:
        """End every process. Nothing is decoded any more."""
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
            # One that was left in the middle of a file, by a cancelled request too, cannot take another.
            if answer:
                self._idle.append(process)
            else:
                _kill(process)
        return json.loads(answer)

    def _why_ended(self, code: int) -> Exception:
        """What the end of a process in the middle of a file means: the file's fault, or ours."""
        if code == -signal.SIGPROF:
            return ControlImageInvalid(f"decoding it takes longer than {self._limits.decode_timeout_s:g} s")
        logger.error("a decoder ended with %s in the middle of a control image", code)
        if code in (-signal.SIGKILL, -signal.SIGTERM):
            # The system's choice when memory is short.
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
                # No secret of the service's environment is where foreign bytes are decoded.
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
    """The line that a process answers; empty if it has ended."""
    assert process.stdin is not None
    try:
        process.stdin.writelines((head, data))
        await process.stdin.drain()
    except ConnectionError:
        return b""
    return await _read_line(process)


async def _read_line(process: Process) -> bytes:
    """A whole line, or nothing: a process that ends may leave a part of one."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    return line if line.endswith(b"\n") else b""


def _kill(process: Process) -> None:
    if process.returncode is None:
        process.kill()
