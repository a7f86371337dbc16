"""Whose turn it is."""

import itertools

from serve_app.policy.fair_queue import BULK_SHARE, first_turn, next_images


def test_interactive_goes_first_and_bulk_is_not_starved():
    taken, passed_over = next_images(["i"] * 20, ["b"] * 20, 10, 0)
    assert taken == ["i", "i", "i", "i", "b"] * 2
    assert passed_over == 0
    assert next_images([], ["b"] * 3, 2, 0) == (["b", "b"], 0)


def test_being_passed_over_is_remembered_between_claims():
    taken, passed_over = [], 0
    interactive, bulk = itertools.repeat("i"), itertools.repeat("b")
    for _ in range(10):
        one, passed_over = next_images([next(interactive)], [next(bulk)], 1, passed_over)
        taken += one
    assert taken.count("b") == 10 // BULK_SHARE


def test_bulk_that_comes_later_has_no_claim_from_before():
    _, passed_over = next_images(["i"] * 50, [], 50, 0)
    assert next_images(["i"], ["b"], 1, passed_over)[0] == ["i"]


def test_a_tenants_turns_follow_each_other_and_start_where_the_line_is():
    assert first_turn(served=0, last_of_tenant=None) == 0
    assert first_turn(served=7, last_of_tenant=None) == 7
    assert first_turn(served=7, last_of_tenant=1) == 7
    assert first_turn(served=7, last_of_tenant=20) == 21
