"""Who stays in host memory: the most used, as far as the budget goes."""

import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest

from serve_app.engine.adapter_cache import HALF_LIFE, AdapterCache

PLACES, SIZE = 3, 10


@dataclass(frozen=True)
class Sized:
    size_bytes: int = SIZE


class Counted:
    """A cache and the loads that it asked for."""

    def __init__(self, budget_bytes: int = PLACES * SIZE) -> None:
        self.cache: AdapterCache[Sized] = AdapterCache(budget_bytes)
        self.loads: list[str] = []

    def use(self, *adapter_ids: str, size_bytes: int = SIZE) -> list[str]:
        """One edit with these, from beginning to end; those that had to be loaded for it."""
        before = len(self.loads)
        self.begin(*adapter_ids, size_bytes=size_bytes)
        return self.loads[before:]

    def begin(self, *adapter_ids: str, size_bytes: int = SIZE) -> dict[str, Sized]:
        """An edit with these, which lasts as long as the result."""
        return self.cache.get_all({adapter_id: self._load(adapter_id, size_bytes) for adapter_id in adapter_ids})

    def use_each(self, adapter_ids: Iterable[str]) -> int:
        return sum(len(self.use(adapter_id)) for adapter_id in adapter_ids)

    def _load(self, adapter_id: str, size_bytes: int) -> Callable[[], Sized]:
        def load() -> Sized:
            self.loads.append(adapter_id)
            return Sized(size_bytes)

        return load


@pytest.fixture
def counted() -> Counted:
    return Counted()


def zipf(draws: int, adapters: int = 40, seed: int = 0) -> list[str]:
    weights = [1 / (rank + 1) for rank in range(adapters)]
    return [str(rank) for rank in random.Random(seed).choices(range(adapters), weights, k=draws)]


def test_rarely_used_adapters_do_not_evict_popular_ones(counted):
    counted.use_each("abc" * 5)
    counted.use_each(f"once {n}" for n in range(20))
    assert counted.use_each("abc") == 0


def test_new_adapter_is_shared_while_an_edit_holds_it(counted):
    counted.use_each("abc" * 5)
    edit = counted.begin("new")
    assert counted.cache.holds("new")
    assert counted.use_each(["new", "a", "new"]) == 0
    assert counted.cache.size_bytes <= PLACES * SIZE
    del edit
    assert not counted.cache.holds("new")
    assert counted.use("new") == ["new"]


def test_new_adapter_that_is_used_more_replaces_the_least_used(counted):
    counted.use_each("aaaaabbbbbcc")
    counted.use_each(["new"] * 4)
    counted.use_each(["other", "another"])
    assert counted.use_each(["a", "b", "new"]) == 0
    assert not counted.cache.holds("c")


def test_uses_count_while_the_adapter_is_not_in_the_cache(counted):
    counted.use_each("aaaaabbbbbcc")
    for n in range(4):
        counted.use("new")
        counted.use(f"other {n}")
    assert counted.use("new") == []


def test_popularity_decays(counted):
    counted.use_each("abc" * 50)
    counted.use_each("xyz" * HALF_LIFE * 2 * PLACES)
    counted.use("other")
    assert counted.use_each("xyz") == 0


def test_adapters_of_an_edit_stay_until_it_ends(counted):
    counted.use_each("abc" * 5)
    edit = counted.begin("up", "down")
    assert counted.use("up", "down") == []
    del edit
    assert not counted.cache.holds("up")
    assert not counted.cache.holds("down")


def test_adapter_larger_than_the_budget_is_never_kept_and_evicts_none(counted):
    counted.use_each("abc" * 5)
    for _ in range(20):
        assert counted.use("large", size_bytes=1000) == ["large"]
    assert counted.use_each("abc") == 0


def test_large_new_adapter_that_is_used_more_replaces_several(counted):
    counted.use_each("aaaaabc")
    for _ in range(3):
        counted.use("large", size_bytes=2 * SIZE)
    counted.use("other")
    assert counted.use_each(["a", "large"]) == 0
    assert not counted.cache.holds("b")
    assert not counted.cache.holds("c")


@pytest.mark.parametrize("seed", range(3))
def test_budget_is_kept(seed):
    chance, counted, budget = random.Random(seed), Counted(budget_bytes=100), 100
    for n in range(1000):
        adapters = [f"{chance.randrange(30)} of edit {n % 7}" for _ in range(chance.randint(1, 3))]
        size = chance.randint(1, 60)
        counted.use(*adapters, size_bytes=size)
        assert counted.cache.size_bytes <= budget
    assert counted.cache.size_bytes > budget / 2


def test_popular_adapters_are_nearly_always_in_the_cache():
    counted, draws = Counted(budget_bytes=12 * SIZE), 20_000
    shares = [1 / (rank + 1) for rank in range(40)]
    held_for_ever = 1 - sum(shares[:12]) / sum(shares)
    counted.use_each(zipf(draws))
    assert len(counted.loads) / draws < held_for_ever + 0.02


def test_cache_follows_changes_of_popularity():
    counted, draws = Counted(budget_bytes=12 * SIZE), 5000
    counted.use_each(zipf(draws))
    steady = len(counted.loads)
    # The same traffic for adapters of other names: each popular one has to be loaded and to prove itself.
    counted.use_each(f"new {adapter}" for adapter in zipf(draws, seed=1))
    assert len(counted.loads) - steady < 1.1 * steady


def test_failed_load_is_raised_and_evicts_none(counted):
    counted.use_each("abc" * 5)

    def fail() -> Sized:
        raise OSError("no such file")

    for _ in range(20):
        with pytest.raises(OSError, match="no such file"):
            counted.cache.get("bad", fail)
    assert not counted.cache.holds("bad")
    assert counted.use_each("abc") == 0
    assert counted.use("bad") == ["bad"]


def test_adapter_is_loaded_once_for_all_callers(counted):
    asked, go_on = threading.Semaphore(0), threading.Event()
    loads, got = [], []

    def load() -> Sized:
        loads.append(threading.get_ident())
        assert go_on.wait(30)
        return Sized()

    def ask() -> None:
        asked.release()
        got.append(counted.cache.get("a", load))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert asked.acquire(timeout=30)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert len(loads) == 1
    assert len(got) == 8
    assert len({id(adapter) for adapter in got}) == 1
