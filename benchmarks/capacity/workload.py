"""Who asks for what, and when: arrivals and popularity after published statistics, work by the service's own model.

- Popularity of adapters: a power law with exponent 1. S-LoRA (arXiv 2311.03285) has `alpha = 1` nearly everywhere in
  benchmarks/exp_suite.py of its repository, and tries 0.1 to 0.6 beside it, with up to 2,000 adapters.
- Burstiness, the coefficient of variation of the times between arrivals: 2. The same file tries 1 to 8 (`cv`, of a
  Gamma distribution); BurstGPT (arXiv 2401.17644) finds how many requests come at a time to be Gamma distributed.
- A day's peak over its trough: 2. "A constant baseline of roughly 50% of the invocations": Azure Functions, Shahrad et
  al., ATC 2020, section 3.3.

That bursts last a minute, and the mix of edits, are assumptions of ours: no trace of editing services says.
"""

import functools
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from serve_app.images.decode import ImageFacts
from serve_app.images.sizes import MEGAPIXEL
from serve_app.models.architecture import PUBLISHED
from serve_app.models.effective import effective
from serve_app.models.profile import PROFILES
from serve_app.models.recipe import make_recipe
from serve_app.models.registry import MODELS
from serve_app.tasks import EditPlan, Priority

MODEL = "qwen_image_edit"
EXPONENT, BURSTINESS, PEAK_OVER_TROUGH = 1.0, 2.0, 2.0
BURST_S, DAY_S = 60.0, 86400.0
# A prompt of usual length (characters), and a photograph.
PROMPT, CONTROL = "x" * 120, ImageFacts((1024, 1024))


@dataclass(frozen=True)
class Shape:
    """What of an edit decides its work."""

    width: int = 1024
    height: int = 1024
    steps: int = 25
    guidance: float = 4.0

    @functools.cached_property
    def flops(self) -> float:
        """Floating-point operations of the transformer, as `/v1/explain` counts them."""
        spec, size = MODELS[MODEL], (self.width, self.height)
        plan = EditPlan(MODEL, "reference", PROMPT, "", *size, self.steps, self.guidance, 0, "jpeg", ("control",))
        recipe = make_recipe(spec, PROFILES[plan.profile], plan, [CONTROL.size])
        record = effective(plan, spec, recipe, PUBLISHED, [CONTROL])
        return float(record["transformer_flops_estimated"])


# The defaults, most of the time; previews in little; finals in large; few-step adapters without guidance.
MIX = {
    Shape(): 0.6,
    Shape(512, 512): 0.15,
    Shape(1536, 1024, steps=40): 0.05,
    Shape(steps=8, guidance=1.0): 0.2,
}


@dataclass(frozen=True)
class Arrival:
    """One image that is asked for, `at` seconds from the start. `adapter` is "" for the base model."""

    number: int
    at: float
    shape: Shape
    adapter: str
    tenant: str = ""
    priority: Priority = Priority.INTERACTIVE


@dataclass(frozen=True)
class Traffic:
    """`per_s` requests a second on average. With `days` the average is a day's, which begins at its mean.

    `burstiness` is the coefficient of variation of the time between arrivals, 1 for Poisson.
    """

    per_s: float
    adapters: int
    exponent: float = EXPONENT
    burstiness: float = BURSTINESS
    days: bool = False
    mix: tuple[tuple[Shape, float], ...] = tuple(MIX.items())
    tenants: int = 10
    bulk: float = 0.2

    @property
    def flops(self) -> float:
        """Of a request, on average."""
        return sum(shape.flops * share for shape, share in self.mix) / sum(share for _, share in self.mix)

    def arrivals(self, seed: int) -> Iterator[Arrival]:
        """For ever, in order. The same seed is the same arrivals."""
        chance = random.Random(seed)
        weights = list(itertools.accumulate(popularity(self.adapters, self.exponent)))
        names = [adapter_name(rank) for rank in range(self.adapters)]
        tenants = list(itertools.accumulate(popularity(self.tenants, EXPONENT)))
        shapes, shares = zip(*self.mix, strict=True)
        # Bursts have a chance of their own: the same ones come at any rate.
        bursts = random.Random(-1 - seed)
        for number, at in enumerate(self._times(chance, bursts)):
            yield Arrival(
                number,
                at,
                chance.choices(shapes, shares)[0],
                chance.choices(names, cum_weights=weights)[0] if names else "",
                f"tenant {chance.choices(range(self.tenants), cum_weights=tenants)[0]}",
                Priority.BULK if chance.random() < self.bulk else Priority.INTERACTIVE,
            )

    def _times(self, chance: random.Random, bursts: random.Random) -> Iterator[float]:
        """A Poisson process whose rate is drawn anew for each burst, and swings with the day."""
        for burst in itertools.count():
            start = burst * BURST_S
            rate = self.per_s * burst_factor(self.burstiness, bursts)
            if self.days:
                rate *= day_factor(start)
            at = start
            while (at := at + chance.expovariate(rate)) < start + BURST_S:
                yield at


def adapter_name(rank: int) -> str:
    return f"adapter {rank}"


def popularity(count: int, exponent: float) -> Sequence[float]:
    """The share of requests of each of `count`, most popular first."""
    weights = [1 / (rank + 1) ** exponent for rank in range(count)]
    return [weight / sum_ for sum_ in [sum(weights)] for weight in weights]


def burst_factor(burstiness: float, chance: random.Random) -> float:
    """By how much a burst's rate differs from the average, 1 on average.

    Gamma of shape k: a Poisson process of such a rate has times between arrivals whose squared coefficient of
    variation is 2k / (k - 1) - 1 (moments of a mixture of exponentials, weighted by arrivals).
    """
    if burstiness <= 1:
        return 1.0
    shape = (burstiness**2 + 1) / (burstiness**2 - 1)
    return chance.gammavariate(shape, 1 / shape)


def day_factor(at: float) -> float:
    """A sine over the day, 1 on average, with the published peak over trough."""
    swing = (PEAK_OVER_TROUGH - 1) / (PEAK_OVER_TROUGH + 1)
    return 1 + swing * math.sin(2 * math.pi * at / DAY_S)


def forward_flops() -> float:
    """Of the forward that the card was measured with: 1024x1024, one control image, 1400 text tokens."""
    return float(PUBLISHED.forward_flops(2 * MEGAPIXEL // 16**2, 1400))
