"""The failure drill: what was accepted must end as if nothing had been killed.

python -m benchmarks.drill      # make drill

60 requests over three editors and two ingresses, on a PostgreSQL server and a Ray cluster of its own, on
loopback. Editors, ingresses and connections to the database are killed at random while they are seen at work,
then the whole cluster. What is left of it then has to stand 50 cancellations among 100 requests, and then 250
cancellations at random moments among 500 edits, after which every editor has to be the one that it was. Time limits
of minutes are shortened so that they act within the drill. Seeds are fixed; it takes at most five minutes and ends
what it started. The exit code is 1 if anything is not as it must be.
"""

import asyncio
import sys
import time

from benchmarks.drill.cancelling import CancelDrill
from benchmarks.drill.failures import FailureDrill
from benchmarks.drill.load import Client
from benchmarks.drill.service import DrillFailed, Service
from benchmarks.drill.steady import SteadyDrill
from benchmarks.drill.store import Store
from tests.postgres import PostgresServer

LIMIT_S = 290


async def drill() -> list[str]:
    with PostgresServer(durable=True) as postgres:
        url = postgres.new_database()
        with Service(url) as service:
            await service.start()
            async with Store(url) as store, Client([service.url]) as client:
                failures = FailureDrill(service, store, client)
                try:
                    problems = await failures.run()
                finally:
                    print("\n".join(failures.report()))
                print("\nCancel under load:")
                problems += await CancelDrill(service, client).run()
                print("\nCancel at random moments:")
                return problems + await SteadyDrill(service, client).run()


async def main() -> None:
    began = time.monotonic()
    try:
        async with asyncio.timeout(LIMIT_S):
            problems = await drill()
    except TimeoutError:
        problems = [f"it was not done after {LIMIT_S} s"]
    except DrillFailed as failure:
        problems = [str(failure)]
    print(f"\nThe drill took {time.monotonic() - began:.0f} s.")
    if problems:
        sys.exit("\n".join(["It FAILED:", *problems]))
    print("Every accepted request ended, with all its images, each equal to that of an undisturbed run, none twice.")


if __name__ == "__main__":
    asyncio.run(main())
