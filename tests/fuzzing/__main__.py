"""Bounded runs of random inputs, which add up in a file.

    python -m tests.fuzzing requests --count 100000 --processes 2
    python -m tests.fuzzing images --count 50000
    python -m tests.fuzzing safetensors --count 20000

`--count` is how many inputs the file shall have in the end, so a run that was stopped goes on where it was. Each round
has a seed of its own. It fails if an input was a fault.
"""

import argparse
import sys
from pathlib import Path

from tests.fuzzing.campaign import KINDS, Campaign


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--count", type=int, default=10_000, help="inputs of all runs together")
    parser.add_argument("--seconds", type=float, default=86_400, help="start no round after this time")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0, help="of a new file")
    parser.add_argument("--folder", type=Path, default=Path("out/fuzzing"), help="where the sums are")
    given = parser.parse_args()
    file = given.folder / f"{given.kind}.json"
    tally = Campaign(given.kind, given.count, given.seconds, given.processes, file, given.first_seed).run()
    if tally.faults:
        sys.exit(f"{len(tally.faults)} faults, which are in {file}")


if __name__ == "__main__":
    main()
