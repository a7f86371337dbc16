"""How many inputs were sent in all runs, what came of them, and the faults, in a JSON file."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEPT_FAULTS = 200


@dataclass
class Tally:
    """Results of bounded runs, added up. `slowest_s` is the longest time that one input took, which `slowest` names.

    `seconds` are those of all rounds together, also of rounds that ran at the same time. `next_seed` is the seed of the
    next round: that of a round whose result was lost is not used again.
    """

    inputs: int = 0
    rounds: int = 0
    next_seed: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    slowest: str = ""
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, file: Path) -> "Tally":
        """What earlier runs have left in the file; nothing if there is none."""
        if not file.exists():
            return cls()
        found: dict[str, Any] = json.loads(file.read_text())
        return cls(**found | {"outcomes": Counter(found["outcomes"])})

    def write(self, file: Path) -> None:
        """Replace the file in one step, since a run may be stopped at any moment."""
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(".new")
        new.write_text(json.dumps(vars(self), indent=1))
        new.replace(file)

    def add(self, outcome: str) -> None:
        self.inputs += 1
        self.outcomes[outcome] += 1

    def time(self, seconds: float, name: str) -> None:
        if seconds > self.slowest_s:
            self.slowest_s, self.slowest = seconds, name

    def add_fault(self, fault: str) -> None:
        if len(self.faults) < KEPT_FAULTS:
            self.faults.append(fault)

    def __iadd__(self, other: "Tally") -> "Tally":
        self.inputs += other.inputs
        self.rounds += other.rounds
        self.next_seed = max(self.next_seed, other.next_seed)
        self.seconds += other.seconds
        self.time(other.slowest_s, other.slowest)
        self.outcomes += other.outcomes
        for fault in other.faults:
            self.add_fault(fault)
        return self

    def __str__(self) -> str:
        common = ", ".join(f"{outcome} {count}" for outcome, count in self.outcomes.most_common(12))
        return (
            f"{self.inputs} inputs in {self.rounds} rounds and {self.seconds:.0f} s, slowest {self.slowest_s:.2f} s, "
            f"{len(self.faults)} faults; {common}"
        )
