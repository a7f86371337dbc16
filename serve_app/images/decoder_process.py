"""A process that decodes control images, started by `pool`.

A file comes on standard input: a line of JSON, then the bytes. Its answer goes to standard output as a line of JSON.
The pixels go nowhere: what is wanted here is what a file is, and whether it can be decoded at all. The process ends
with its input.
"""

import json
import os
import resource
import signal
import sys
from dataclasses import asdict
from typing import Any, BinaryIO

import PIL.AvifImagePlugin

from serve_app.errors import ControlImageInvalid
from serve_app.images.decode import decode

# Less urgent than everything else: ingresses answer, and editors on a CPU compute, before images are looked at.
NICENESS = 5


def main() -> None:
    memory_bytes = int(sys.argv[1])
    files, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # What a library prints is no answer, and libtiff prints what it thinks of each broken file.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    # Ctrl-C in a terminal goes to every process of it; this one ends when the service closes its input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # On a machine of many cores, the stacks of as many threads would not fit.
    PIL.AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    _write(answers, {"ready": True})
    while line := files.readline():
        order = json.loads(line)
        _write(answers, _answer(files.read(order["size"]), order, memory_bytes))


def _write(answers: BinaryIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


def _answer(data: bytes, order: dict[str, Any], memory_bytes: int) -> dict[str, Any]:
    # The kernel ends a process that has used so much time of a CPU, also in the middle of a library's loop.
    signal.setitimer(signal.ITIMER_PROF, order["cpu_s"])
    try:
        return {"facts": asdict(decode(data, order["exif"], order["max_pixels"]).facts)}
    except ControlImageInvalid as error:
        return {"invalid": error.message}
    except MemoryError:
        return {"invalid": f"decoding it takes more than {memory_bytes // 10**6} MB of memory"}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main()
