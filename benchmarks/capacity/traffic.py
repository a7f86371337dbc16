"""Simulated traffic: when each image is requested, with which adapter, and how much work it is.

docs/capacity.md names the published statistics behind the constants, and says what is assumed.
"""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from serve_app.tasks import Priority

POPULARITY_EXPONENT, BURST_S = 1.0, 60.0
TENANTS, BULK_SHARE = 10, 0.2
# Work of the transformer, in floating-point operations, as `POST /v1/explain` reports it for a 1024x1024 control image.
DEFAULT_EDIT_FLOPS = 9.901e15  # 1024x1024, 25 steps, guidance 4
MIX = (
    (DEFAULT_EDIT_FLOPS, 0.6),
    (5.990e15, 0.15),  # 512x512, 25 steps, guidance 4
    (20.533e15, 0.05),  # 1536x1024, 40 steps, guidance 4
    (1.5875e15, 0.2),  # 1024x1024, 8 steps without guidance
)


@dataclass(eq=False)
class Image:
    """One requested image. Times are simulated seconds, NaN until the event has happened. `adapter` "" is none."""

    number: int
    requested: float
    flops: float
    adapter: str
    tenant: str = ""
    priority: Priority = Priority.INTERACTIVE
    committed: float = math.nan
    began: float = math.nan  # on the device
    ended: float = math.nan
    loads: int = 0
    fetches: int = 0

    @property
    def waited_s(self) -> float:
        return self.began - self.requested

    @property
    def latency_s(self) -> float:
        return self.ended - self.requested


@dataclass(frozen=True)
class Traffic:
    """Requests for `per_s` images a second on average, over `adapters` adapters.

    `burstiness` is the coefficient of variation of the time between requests; 1 is a Poisson process.
    """

    per_s: float
    adapters: int
    burstiness: float = 2.0

    @property
    def mean_flops(self) -> float:
        return sum(flops * share for flops, share in MIX)

    def images(self, seed: int) -> Iterator[Image]:
        """An endless stream in order of time. The same seed gives the same stream."""
        chance = random.Random(seed)
        adapter_weights = list(itertools.accumulate(popularity(self.adapters)))
        tenant_weights = list(itertools.accumulate(popularity(TENANTS)))
        works, shares = zip(*MIX, strict=True)
        # Bursts have a random generator of their own, so that every rate gets the same bursts.
        for number, at in enumerate(self._times(chance, random.Random(-1 - seed))):
            flops = chance.choices(works, shares)[0]
            adapter = adapter_name(chance.choices(range(self.adapters), cum_weights=adapter_weights)[0])
            tenant = f"tenant {chance.choices(range(TENANTS), cum_weights=tenant_weights)[0]}"
            priority = Priority.BULK if chance.random() < BULK_SHARE else Priority.INTERACTIVE
            yield Image(number, at, flops, adapter, tenant, priority)

    def _times(self, chance: random.Random, bursts: random.Random) -> Iterator[float]:
        """Times of a Poisson process whose rate is drawn anew for each burst."""
        for burst in itertools.count():
            rate = self.per_s * burst_factor(self.burstiness, bursts)
            at = burst * BURST_S + chance.expovariate(rate)
            while at < (burst + 1) * BURST_S:
                yield at
                at += chance.expovariate(rate)


def adapter_name(rank: int) -> str:
    return f"adapter {rank}"


def popularity(count: int) -> list[float]:
    """Share of the requests that each of `count` adapters or tenants gets, most popular first: a power law."""
    weights = [1 / (rank + 1) ** POPULARITY_EXPONENT for rank in range(count)]
    total = sum(weights)
    return [weight / total for weight in weights]


def burst_factor(burstiness: float, chance: random.Random) -> float:
    """Rate of one burst as a multiple of the average rate.

    Gamma distributed with shape k: times between arrivals of such a process have the squared coefficient of variation
    2k / (k - 1) - 1 (moments of a mixture of exponential distributions, weighted by arrivals).
    """
    if burstiness <= 1:
        return 1.0
    shape = (burstiness**2 + 1) / (burstiness**2 - 1)
    return chance.gammavariate(shape, 1 / shape)
