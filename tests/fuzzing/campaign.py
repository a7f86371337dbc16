"""Rounds of random inputs in processes of their own, whose results add up in a file."""

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from tests.fuzzing.images import fuzz_images
from tests.fuzzing.requests import fuzz_requests
from tests.fuzzing.safetensors_files import fuzz_safetensors
from tests.fuzzing.tally import Tally

# About how many operations there are.
OPERATIONS = 45


def fuzz_by_schema(count: int, seed: int) -> Tally:
    """About `count` requests by Schemathesis: as many of each operation, valid and invalid."""
    # A machine that only runs the other kinds need not have it.
    from tests.fuzzing import schema_cases

    return schema_cases.fuzz_by_schema(max(1, count // (2 * OPERATIONS)), seed)


# What a round of each kind does, given the number of inputs and a seed, and how many inputs it has.
KINDS: dict[str, tuple[Callable[[int, int], Tally], int]] = {
    "requests": (fuzz_requests, 2_000),
    "images": (fuzz_images, 1_000),
    "safetensors": (fuzz_safetensors, 1_000),
    "schema": (fuzz_by_schema, 1_000),
}
# Fuzzing gives way to everything else on its machine.
NICENESS = 19
# Processes are replaced, so that what an application leaves behind does not add up.
ROUNDS_PER_PROCESS = 10


@dataclass
class Campaign:
    """Rounds of one kind until the file has `count` inputs, or `seconds` are over: then no round is started."""

    kind: str
    count: int
    seconds: float
    processes: int
    file: Path
    first_seed: int = 0

    def run(self) -> Tally:
        """The sum of this run and the earlier ones. Raises BrokenProcessPool if an input ended a process."""
        tally = Tally.read(self.file)
        seed = max(tally.next_seed, self.first_seed)
        left, until = self.count - tally.inputs, time.monotonic() + self.seconds
        print(f"{self.kind} so far: {tally}", flush=True)  # noqa: T201
        running: set[Future[Tally]] = set()
        with self._pool() as pool:
            while running or (left > 0 and time.monotonic() < until):
                while len(running) < self.processes and left > 0 and time.monotonic() < until:
                    fuzz, size = KINDS[self.kind]
                    running.add(pool.submit(fuzz, min(size, left), seed))
                    left, seed = left - size, seed + 1
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    self._add(tally, future.result())
        return tally

    def _pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self.processes,
            multiprocessing.get_context("spawn"),
            initializer=os.nice,
            initargs=(NICENESS,),
            max_tasks_per_child=ROUNDS_PER_PROCESS,
        )

    def _add(self, tally: Tally, done: Tally) -> None:
        for fault in done.faults:
            # A fault may quote half of a surrogate pair, which no terminal takes.
            print(f"FAULT {fault}".encode("ascii", "backslashreplace").decode(), flush=True)  # noqa: T201
        tally += done
        tally.write(self.file)
        print(f"{self.kind}: {tally}", flush=True)  # noqa: T201
