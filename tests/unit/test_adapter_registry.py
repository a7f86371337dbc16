"""An adapter in use, or promised to a router, is never given up."""

import threading

from serve_app.adapters.registry import AdapterRegistry


def load(registry: AdapterRegistry, *ids: str) -> None:
    for adapter_id in ids:
        registry.mark_loaded(adapter_id)


def test_least_recently_used_is_surplus():
    registry = AdapterRegistry(capacity=2)
    load(registry, "a", "b", "a", "c")
    assert registry.take_surplus() == ["b"]


def test_used_and_promised_adapters_are_kept():
    registry = AdapterRegistry(capacity=1)
    load(registry, "a", "b", "c")
    registry.promise(["b"])
    with registry.using(["a"]):
        assert registry.take_surplus() == ["c"]
        assert registry.take_surplus() == []
    assert registry.take_surplus() == ["a"]
    assert registry.is_loaded("b")


def test_what_is_taken_counts_as_gone_at_once():
    registry = AdapterRegistry(capacity=0)
    load(registry, "a")
    assert registry.take_surplus() == ["a"]
    assert not registry.is_loaded("a")


def test_two_promises_need_two_withdrawals():
    registry = AdapterRegistry(capacity=0)
    load(registry, "a")
    registry.promise(["a"])
    registry.promise(["a"])
    registry.withdraw(["a"])
    assert registry.take_surplus() == []


def test_failed_edit_leaves_no_reference():
    registry = AdapterRegistry(capacity=0)
    load(registry, "a")
    try:
        with registry.using(["a"]):
            raise ValueError
    except ValueError:
        assert registry.take_surplus() == ["a"]


def test_counts_hold_under_threads():
    registry = AdapterRegistry(capacity=0)
    load(registry, "a")

    def use() -> None:
        for _ in range(2000):
            with registry.using(["a"]):
                assert registry.take_surplus() == []

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.take_surplus() == ["a"]
