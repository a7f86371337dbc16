"""The failure drill: what was accepted must end as if nothing had been killed.

python -m benchmarks.drill [failures] [cancelling] [steady]      # make drill: all three

60 requests over three editors and two ingresses, on a PostgreSQL server and a Ray cluster of its own, on
loopback. Editors, ingresses and connections to the database are killed at random while they are seen at work,
then the whole cluster. What is left of it then has to stand 50 cancellations among 100 requests, and then 250
cancellations at random moments among 500 edits, after which every editor has to be the one that it was. Time limits
of minutes are shortened so that they act within the drill. Seeds are fixed; it takes at most five minutes and ends
what it started. The exit code is 1 if anything is not as it must be.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence

from benchmarks.drill.cancelling import CancelDrill
from benchmarks.drill.failures import FailureDrill
from benchmarks.drill.load import Client
from benchmarks.drill.service import DrillFailed, Service
from benchmarks.drill.steady import SteadyDrill
from benchmarks.drill.store import Store
from tests.postgres import PostgresServer

LIMIT_S = 290


async def fail(service: Service, store: Store, client: Client) -> list[str]:
    drill = FailureDrill(service, store, client)
    try:
        return await drill.run()
    finally:
        print("\n".join(drill.report()))


async def cancel(service: Service, store: Store, client: Client) -> list[str]:
    print("\nCancel under load:")
    return await CancelDrill(service, client).run()


async def cancel_at_random(service: Service, store: Store, client: Client) -> list[str]:
    print("\nCancel at random moments:")
    return await SteadyDrill(service, client).run()


PARTS = {"failures": fail, "cancelling": cancel, "steady": cancel_at_random}


async def drill(parts: Sequence[str], problems: list[str]) -> None:
    """Add what is not as it must be to `problems` after each part: it is reported also if a later part hangs."""
    with PostgresServer(durable=True) as postgres:
        url = postgres.new_database()
        with Service(url) as service:
            await service.start()
            async with Store(url) as store, Client([service.url]) as client:
                for part in parts:
                    problems += await PARTS[part](service, store, client)


async def main(parts: Sequence[str]) -> None:
    began, problems = time.monotonic(), list[str]()
    try:
        async with asyncio.timeout(LIMIT_S):
            await drill(parts, problems)
    except TimeoutError:
        problems.append(f"it was not done after {LIMIT_S} s")
    except DrillFailed as failure:
        problems.append(str(failure))
    print(f"\nThe drill took {time.monotonic() - began:.0f} s.")
    if problems:
        sys.exit("\n".join(["It FAILED:", *problems]))
    if "failures" in parts:
        print(
            "Every accepted request ended, with all its images, each equal to that of an undisturbed run, none twice."
        )
    if "steady" in parts:
        print("No healthy editor was replaced.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"which ones: {', '.join(PARTS)} (all)")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    asyncio.run(main(arguments.parts or list(PARTS)))
