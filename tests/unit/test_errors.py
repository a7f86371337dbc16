"""The error tree: what crosses Ray whole, and what a client never sees."""

import pickle

import pytest

from serve_app import errors
from serve_app.errors import ServiceError, describe


def every_error(kind: type[ServiceError] = ServiceError) -> list[type[ServiceError]]:
    return [kind] + [error for child in kind.__subclasses__() for error in every_error(child)]


@pytest.mark.parametrize("kind", every_error())
def test_error_is_rebuilt_from_its_args(kind):
    error = pickle.loads(pickle.dumps(kind("why", {"fact": 1})))
    assert describe(error) == describe(kind("why", {"fact": 1}))
    assert (str(error), error.details) == ("why", {"fact": 1})


def test_every_error_stands_in_the_tree_at_the_top_of_its_file():
    assert [kind.__name__ for kind in every_error() if kind.__name__ not in (errors.__doc__ or "")] == []


def test_codes_are_distinct():
    codes = [kind.code for kind in every_error() if "code" in vars(kind)]
    assert len(codes) == len(set(codes))


def test_text_of_a_foreign_error_never_leaks():
    description = describe(ValueError("password is hunter2"))
    assert (description.code, description.status) == ("INTERNAL_ERROR", 500)
    assert "hunter2" not in description.message
