"""A phase's time: it ends by the clock, whatever it has reached, and its learning rate follows the clock."""

import json
import math
import sys
import time
from pathlib import Path

import torch
from torch import nn


class Clock:
    """Seconds given to a phase. Counts from the first `tick`, so that building and compiling are not in it."""

    def __init__(self, seconds: float, least_steps: int = 2) -> None:
        self.seconds = seconds
        self.least_steps = least_steps
        self.steps = 0
        self._started = time.monotonic()

    @property
    def share(self) -> float:
        """How much of the time is gone, 0 to 1."""
        return min(1.0, (time.monotonic() - self._started) / self.seconds)

    def tick(self) -> bool:
        """Count a step; whether there is time for it."""
        if self.share >= 1 and self.steps >= self.least_steps:
            return False
        self.steps += 1
        return True

    def rate(self, highest: float, warm_up: int = 200) -> float:
        """Linear warm-up by steps, then a cosine by the clock down to a hundredth."""
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.share))
        return highest * min(1.0, (self.steps + 1) / warm_up) * cosine


class Average:
    """The exponential moving average of a module's parameters: smoother than the last step's."""

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        self._live: list[torch.Tensor] = list(module.parameters())
        self._mean = [p.detach().clone() for p in self._live]
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._mean, [p.detach() for p in self._live], 1 - decay)

    @torch.no_grad()
    def settle(self) -> None:
        """Put the average in the place of the parameters, for good."""
        torch._foreach_copy_(self._live, self._mean)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the two: once to measure the average, again to train on."""
        kept = [p.detach().clone() for p in self._live]
        torch._foreach_copy_(self._live, self._mean)
        torch._foreach_copy_(self._mean, kept)


class Log:
    """Lines of JSON, on standard output and in a file, as they come."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        self._started = time.monotonic()

    def __call__(self, phase: str, **facts: object) -> None:
        line = {"phase": phase, "at_s": round(time.monotonic() - self._started, 1)}
        line |= {k: round(v, 4) if isinstance(v, float) else v for k, v in facts.items()}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        with self._file.open("a") as log:
            log.write(json.dumps(line) + "\n")
