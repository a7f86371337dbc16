"""The order of the queue: fair between tenants, interactive before bulk, and bulk is not starved.

Within a class, tenants share by start-time fair queueing (Goyal, Vin and Cheng, 1996) with images of length 1, which is
round robin. The turn of an image follows its tenant's previous one, but is never earlier than the turn that is being
served. So a new tenant is next, even if another tenant has many images waiting, and an absent tenant saves up no turns.
"""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

# While images of both classes wait, one of this many is bulk.
BULK_SHARE = 5


def first_turn(served: int, last_of_tenant: int | None) -> int:
    """The turn of a tenant's next image. `served` is the latest turn that was claimed in its class."""
    return served if last_of_tenant is None else max(served, last_of_tenant + 1)


def next_images(interactive: Sequence[T], bulk: Sequence[T], room: int, passed_over: int) -> tuple[list[T], int]:
    """The next `room` images of two lines, each of which keeps its order.

    `passed_over` counts the interactive images that were chosen since the last bulk image while bulk waited; the second
    result is its new value.
    """
    taken: list[T] = []
    interactive_left, bulk_left = list(interactive), list(bulk)
    while len(taken) < room and (interactive_left or bulk_left):
        if bulk_left and (not interactive_left or passed_over >= BULK_SHARE - 1):
            taken.append(bulk_left.pop(0))
            passed_over = 0
        else:
            taken.append(interactive_left.pop(0))
            passed_over = passed_over + 1 if bulk_left else 0
    return taken, passed_over
