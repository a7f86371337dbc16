"""A process that decodes control images, started by `decoder_pool`.

It reads files from standard input, each as a line of JSON and then the bytes, and answers each on standard output with
a line of JSON. The answer holds the facts about the image, not its pixels. The process ends when its input ends.
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

# Lower priority than the ingress's answers and than editors that compute on a CPU.
NICENESS = 5


def main() -> None:
    memory_bytes = int(sys.argv[1])
    files, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # Output of libraries must not mix with the answers: libtiff prints a message for each broken file.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    # Ctrl-C in a terminal signals all its processes. This one ends when the service closes its input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # On a machine with many cores, the stacks of one thread per core would exceed the memory limit.
    PIL.AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    _write(answers, {"ready": True})
    while line := files.readline():
        order = json.loads(line)
        _write(answers, _answer(files.read(order["size"]), order, memory_bytes))


def _write(answers: BinaryIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


def _answer(data: bytes, order: dict[str, Any], memory_bytes: int) -> dict[str, Any]:
    # The kernel ends the process after this much CPU time, even within a library's loop.
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
