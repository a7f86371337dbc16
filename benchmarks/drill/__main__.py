"""The failure drill: every accepted request must end as if nothing had been killed.

python -m benchmarks.drill [failures] [cancelling] [steady] [sweep]      # make drill: the first three

`failures` sends 60 requests to three editors and two ingresses, with a PostgreSQL server and a Ray cluster started for
the drill, on loopback. It kills editors, ingresses and connections to the database at random while they are at work,
and then the whole cluster. `cancelling` cancels 50 of 100 requests. `steady` cancels 250 of 500 edits at random
moments; no editor may be replaced by that. `sweep` kills an editor and
then the cluster during a sweep of 48 cells. Time limits of minutes are shortened so that they act within the drill.
Seeds are fixed. The drill takes at most five minutes and stops what it started. The exit code is 1 if it finds a
problem.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence

from benchmarks.drill.cancelling import CancelDrill
from benchmarks.drill.failures import FailureDrill
from benchmarks.drill.load import Client
from benchmarks.drill.service import DrillFailed, Service, conclude
from benchmarks.drill.steady import SteadyDrill
from benchmarks.drill.store import Store
from benchmarks.drill.sweeping import SweepDrill
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


async def sweep(service: Service, store: Store, client: Client) -> list[str]:
    print("\nA sweep that is hit:")
    return await SweepDrill(service, client).run()


PARTS = {"failures": fail, "cancelling": cancel, "steady": cancel_at_random, "sweep": sweep}
# The sweep has a run of its own.
BY_DEFAULT = ("failures", "cancelling", "steady")


async def drill(parts: Sequence[str], problems: list[str]) -> None:
    """Run the parts and add their problems to `problems`, so that they are reported even if a later part hangs."""
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
    conclude(began, problems)
    if "failures" in parts:
        print(
            "Every accepted request ended, with all its images, each equal to that of an undisturbed run, none twice."
        )
    if "steady" in parts:
        print("No healthy editor was replaced.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"one or more of {', '.join(PARTS)}; default: the first three"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    asyncio.run(main(arguments.parts or list(BY_DEFAULT)))
