"""Whose turn it is: fair between tenants, interactive before bulk, bulk not starved. Pure.

Within a class tenants share by start-time fair queueing (Goyal, Vin and Cheng, 1996) with images of length 1,
which is round robin: an image's turn is the one after its tenant's last, but not before the turn that is being
served. So a tenant that comes late is next, however many images another one has waiting, and nobody saves up
turns while away.
"""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

# While both classes wait, one image in so many is bulk.
BULK_SHARE = 5


def first_turn(served: int, last_of_tenant: int | None) -> int:
    """The turn of a tenant's next image, when turn `served` was the last that was taken in its class."""
    return served if last_of_tenant is None else max(served, last_of_tenant + 1)


def next_images(interactive: Sequence[T], bulk: Sequence[T], room: int, passed_over: int) -> tuple[list[T], int]:
    """The next `room` of two lines, each in its own order; and how often bulk that waits was passed over since."""
    taken: list[T] = []
    urgent, patient = list(interactive), list(bulk)
    while len(taken) < room and (urgent or patient):
        if patient and (not urgent or passed_over >= BULK_SHARE - 1):
            taken.append(patient.pop(0))
            passed_over = 0
        else:
            taken.append(urgent.pop(0))
            passed_over = passed_over + 1 if patient else 0
    return taken, passed_over
