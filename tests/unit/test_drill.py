"""The evaluation of a drill finds each kind of problem in notes and states that are written by hand here."""

import asyncio
import io
import random
import subprocess
import sys
import time

import PIL.Image
import psutil
import pytest

from benchmarks.drill import cancelling, steady, verdict
from benchmarks.drill.cancellation import AT_ONCE, Cancellation, Cancelled, Canceller
from benchmarks.drill.load import Answer, Order, digest, make_orders
from benchmarks.drill.notes import Note, Notes
from benchmarks.drill.store import Seen
from benchmarks.drill.verdict import (
    CABLE,
    CLUSTER,
    CONNECTION,
    DATABASE,
    EDITOR,
    HANG,
    HEAD,
    INGRESS,
    NODE,
    SLOW,
    STORAGE,
    Kill,
)

UNDISTURBED = {(0, False): "zero", (1, False): "one"}
ORDER = Order("r1", (0, 1))


def note(at: float, pid: int, what: str, step: int, image: str = "r1.0") -> Note:
    return Note(at, pid, what, image, step, 8)


def seen(at: float, state: str, generation: int = 1, step: int = 0) -> Seen:
    status = {"waiting": "in_queue", "claimed": "in_progress", "ended": "succeeded"}[state]
    return Seen(at, "r1.0", state, status, "host:7:abc" if state == "claimed" else None, generation, step)


def test_notes_come_back_as_they_were_written(tmp_path, make_plan):
    notes = Notes(tmp_path / "notes")
    notes.write("step", make_plan(negative_prompt="r1.0", steps=8), 3)
    reader = Notes(tmp_path / "notes")
    assert [(each.what, each.image, each.step, each.steps) for each in reader.of_image()["r1.0"]] == [
        ("step", "r1.0", 3, 8)
    ]
    notes.write("made", make_plan(negative_prompt="r1.0", steps=8), 8)
    assert [each.what for each in reader.latest().values()] == ["made"]


@pytest.mark.parametrize(
    ("line", "is_at_work"),
    [
        ("{now} 7 step r1.0 3 8", True),
        ("{now} 7 step r1.0 8 8", False),  # after its last step
        ("{now} 7 made r1.0 8 8", False),
        ("{now} 7 step r2.0 3 8", False),  # an image that is not running
        ("{before} 7 step r1.0 3 8", False),  # has not been heard of since
    ],
)
def test_victim_is_in_the_middle_of_an_image(tmp_path, line, is_at_work):
    (tmp_path / "notes").write_text(line.format(now=time.time(), before=time.time() - 5) + "\n")
    assert bool(Notes(tmp_path / "notes").at_work(["r1.0"])) == is_at_work


def test_incomplete_note_is_read_once_it_is_complete(tmp_path):
    (tmp_path / "notes").write_text("1.0 7 step r1.0 0 8\n2.0 7 step r1")
    notes = Notes(tmp_path / "notes")
    assert [each.step for each in notes.of_image()["r1.0"]] == [0]
    with (tmp_path / "notes").open("a") as file:
        file.write(".0 1 8\n")
    assert [each.step for each in notes.of_image()["r1.0"]] == [0, 1]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (Answer("succeeded", None, ((0, "zero"), (1, "one"))), None),
        (Answer("in_progress", None, ()), "has not ended"),
        (Answer("failed", "given up", ()), "failed: given up"),
        (Answer("succeeded", None, ((0, "zero"),)), "reports the images"),
        (Answer("succeeded", None, ((0, "zero"), (0, "zero"))), "reports the images"),
        (Answer("succeeded", None, ((0, "zero"), (1, "zero"))), "is not the image"),
    ],
)
def test_request_that_did_not_end_as_undisturbed_is_seen(answer, problem):
    problems = verdict.faults(ORDER, answer, UNDISTURBED)
    assert (problems == []) if problem is None else (problem in problems[0])


def kills(editors: int = 5, ingresses: int = 5, connections: int = 5, clusters: int = 1) -> list[Kill]:
    counts = ((EDITOR, editors), (INGRESS, ingresses), (CONNECTION, connections), (CLUSTER, clusters))
    return [Kill(10.0, kind, 1, ("r1.0",), "") for kind, count in counts for _ in range(count)]


def test_five_kills_of_each_kind_and_one_of_the_cluster_are_enough():
    assert verdict.misses(kills(), {"r1.0": [note(9.0, 1, "step", 0), note(12.0, 2, "made", 8)]}) == []


@pytest.mark.parametrize("kind", ["editors", "ingresses", "connections", "clusters"])
def test_too_few_kills_are_seen(kind):
    assert len(verdict.misses(kills(**{kind: 0}), {"r1.0": [note(9.0, 1, "step", 0)]})) == 1


def test_kill_of_an_editor_that_had_made_its_image_hit_nothing():
    assert "hit nothing" in verdict.misses(kills(), {"r1.0": [note(9.9, 1, "made", 8)]})[0]


def test_editor_may_be_killed_while_it_makes_an_image_again():
    notes = {"r1.0": [note(8.0, 1, "made", 8), note(9.9, 1, "step", 0)]}
    assert verdict.misses(kills(), notes) == []


def test_kill_without_an_image_hit_nothing():
    assert "hit nothing" in verdict.misses([*kills(), Kill(10.0, INGRESS, 1, (), "")], {})[0]


@pytest.mark.parametrize("kind", [EDITOR, INGRESS, CLUSTER])
def test_work_on_an_image_resumes_when_another_editor_begins_it(kind):
    kill = Kill(10.0, kind, 1, ("r1.0",), "")
    notes = {"r1.0": [note(9.0, 1, "step", 0), note(9.5, 1, "step", 1), note(13.0, 2, "step", 0)]}
    history = {"r1.0": [seen(9.0, "claimed"), seen(10.1, "claimed", step=2), seen(15.0, "ended", 2)]}
    assert verdict.recovery(kill, history, notes) == verdict.Recovery(3.0, 5.0)


def test_recorded_result_also_counts_as_resumed():
    kill = Kill(10.0, INGRESS, 1, ("r1.0",), "")
    history = {"r1.0": [seen(9.0, "claimed"), seen(14.0, "ended", 2)]}
    assert verdict.recovery(kill, history, {"r1.0": [note(9.0, 2, "step", 0)]}) == verdict.Recovery(4.0, 4.0)


def test_recovery_from_a_lost_connection_is_the_next_change():
    kill = Kill(10.0, CONNECTION, 1, ("r1.0",), "")
    history = {"r1.0": [seen(9.0, "claimed"), seen(10.5, "claimed", step=2), seen(12.0, "ended")]}
    assert verdict.recovery(kill, history, {}) == verdict.Recovery(0.5, 2.0)


def test_image_that_never_ended_has_no_recovery():
    kill = Kill(10.0, EDITOR, 1, ("r1.0",), "")
    history = {"r1.0": [seen(9.0, "claimed"), seen(12.0, "claimed", 2)]}
    assert verdict.recovery(kill, history, {"r1.0": [note(12.0, 2, "step", 0)]}) is None
    assert "never" in verdict.kill_rows([kill], 0.0, history, {})[-1]


@pytest.mark.parametrize("kind", [DATABASE, HEAD, SLOW, STORAGE])
def test_recovery_from_a_fault_without_a_lost_editor_is_the_next_change(kind):
    kill = Kill(10.0, kind, 0, ("r1.0",), "")
    history = {"r1.0": [seen(9.0, "claimed"), seen(10.5, "claimed", step=2), seen(12.0, "ended")]}
    assert verdict.recovery(kill, history, {}) == verdict.Recovery(0.5, 2.0)


@pytest.mark.parametrize("kind", [NODE, CABLE, HANG])
def test_steps_of_the_editor_that_was_hit_are_no_recovery(kind):
    kill = Kill(10.0, kind, 7, ("r1.0",), "")
    history = {"r1.0": [seen(9.0, "claimed"), seen(10.5, "claimed", step=2), seen(15.0, "ended", 2)]}
    notes = {"r1.0": [note(9.0, 7, "step", 0), note(11.0, 7, "step", 0), note(13.0, 8, "step", 0)]}
    assert verdict.recovery(kill, history, notes) == verdict.Recovery(3.0, 5.0)


def test_loss_is_noticed_when_the_first_image_is_returned_or_claimed_again():
    kill = Kill(10.0, NODE, 1, ("r1.0", "r2.0"), "")
    handed_on = [seen(9.0, "claimed"), seen(10.5, "claimed", step=2), seen(13.0, "claimed", 2), seen(15.0, "ended", 2)]
    given_back = [seen(9.0, "claimed"), seen(12.0, "waiting"), seen(12.5, "claimed", 2), seen(15.0, "ended", 2)]
    unmoved = [seen(9.0, "claimed"), seen(10.5, "claimed", step=2), seen(12.0, "ended")]
    assert verdict.noticed_s(kill, {"r1.0": handed_on, "r2.0": given_back}) == 2.0
    assert verdict.noticed_s(kill, {"r1.0": handed_on, "r2.0": unmoved}) == 3.0
    assert verdict.noticed_s(kill, {"r1.0": unmoved, "r2.0": unmoved}) is None


def test_longest_pause_is_between_ends_or_before_the_first():
    def history(*ends: float) -> dict[str, list[Seen]]:
        return {f"{number}": [seen(0.0, "claimed"), seen(at, "ended")] for number, at in enumerate(ends)}

    assert verdict.longest_pause_s(10.0, ["0", "1", "2"], history(9.0, 12.0, 17.0)) == 5.0
    assert verdict.longest_pause_s(10.0, ["0", "1", "2"], history(9.0, 16.0, 17.0)) == 6.0
    assert verdict.longest_pause_s(10.0, ["0"], history(9.0)) == 0.0


def test_images_are_counted_by_how_often_they_were_made():
    notes = {"a": [note(1.0, 1, "made", 8)], "b": [note(1.0, 1, "made", 8), note(2.0, 2, "made", 8)]}
    assert verdict.times_made(["a", "b", "c"], notes) == {1: 1, 2: 1, 0: 1}


def test_guard_kills_the_sessions_of_a_drill_that_has_ended(tmp_path):
    folder = tmp_path / "drill"
    folder.mkdir()
    guard = subprocess.Popen([sys.executable, "-m", "benchmarks.drill.service", folder], stdin=subprocess.PIPE)
    # Also a child that its parent does not end.
    cluster = subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo $!; sleep 60"], stdout=subprocess.PIPE, start_new_session=True
    )
    assert guard.stdin
    assert cluster.stdout
    child = psutil.Process(int(cluster.stdout.readline()))
    guard.stdin.write(f"{cluster.pid}\n".encode())
    guard.stdin.close()
    assert guard.wait(20) == 0
    assert cluster.wait(5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert not folder.exists()


def steps(*ends: float) -> dict[str, list[Note]]:
    return {"r1.0": [note(at, 1, "step", number) for number, at in enumerate(ends)]}


@pytest.mark.parametrize(
    ("answered_at", "begun"),
    [
        (0.5, 3),  # before an editor began: no step may run
        (1.5, 2),  # in the first step
        (2.5, 1),
        (3.5, 0),  # in the last one
        (9.0, 0),
    ],
)
def test_steps_that_began_after_a_cancellation_are_counted(answered_at, begun):
    assert (
        cancelling.steps_begun_after(Cancelled("r1.0", 0.0, answered_at, "canceled"), steps(1.0, 2.0, 3.0, 4.0))
        == begun
    )


def test_cancelled_request_that_ran_on_or_succeeded_is_seen():
    assert cancelling.faults([Cancelled("r1.0", 0.0, 2.5, "canceled")], steps(1.0, 2.0, 3.0, 4.0)) == []
    assert "began 2 steps" in cancelling.faults([Cancelled("r1.0", 0.0, 1.5, "canceled")], steps(1.0, 2.0, 3.0, 4.0))[0]
    assert "is succeeded" in cancelling.faults([Cancelled("r1.0", 0.0, 9.0, "succeeded")], {})[0]


def test_orders_are_the_same_for_the_same_seed():
    orders = make_orders(60, random.Random(1))
    assert orders == make_orders(60, random.Random(1))
    assert len({image for order in orders for image in order.images}) == 66
    [first, second] = orders[0].body()["prompts"]
    assert (first["neg"], second["neg"]) == ("r0.0", "r0.1")


def test_digest_is_of_the_pixels_alone():
    def encoded(kind: str, colour: int, size: tuple[int, int] = (4, 4)) -> bytes:
        buffer = io.BytesIO()
        PIL.Image.new("RGB", size, (colour, 0, 0)).save(buffer, kind)
        return buffer.getvalue()

    assert digest(encoded("PNG", 1)) == digest(encoded("BMP", 1))
    assert digest(encoded("PNG", 1)) != digest(encoded("PNG", 2))
    assert digest(encoded("PNG", 1, (2, 8))) != digest(encoded("PNG", 1))


EVERYBODY = frozenset({1, 2, 3})
ENDS = {"cancelled": ("canceled", "succeeded"), "other": ("succeeded",)}


@pytest.mark.parametrize(
    ("after", "started", "statuses", "problem"),
    [
        (frozenset({1, 2, 4}), 1, ENDS, "1 healthy editors were replaced: [3]"),
        (EVERYBODY, 1, ENDS, "1 editors were started, though none was killed"),
        (EVERYBODY, 0, ENDS | {"other": ("succeeded", "failed")}, "1 other requests ended as failed"),
        (EVERYBODY, 0, ENDS | {"cancelled": ("failed",)}, "1 cancelled requests ended as failed"),
    ],
)
def test_editor_that_was_replaced_without_a_fault_and_request_that_was_lost_are_seen(after, started, statuses, problem):
    assert steady.faults(EVERYBODY, EVERYBODY, 0, ENDS) == []
    assert problem in steady.faults(EVERYBODY, after, started, statuses)


@pytest.mark.parametrize(
    ("moment", "is_due"), [(AT_ONCE, True), (0, True), (3, True), (4, False), (steady.MADE, False)]
)
def test_cancellation_is_due_once_its_edit_has_reached_the_moment(moment, is_due):
    notes = [note(float(step), 1, "step", step) for step in range(4)]
    assert Cancellation("id", "r1.0", moment, 0.0).is_due(notes) == is_due
    assert Cancellation("id", "r1.0", moment, 0.0).is_due([*notes, note(9.0, 1, "made", 3)])


async def test_canceller_cancels_each_request_once_its_edit_has_reached_the_moment(tmp_path, make_plan):
    class Requests:
        def __init__(self) -> None:
            self.cancelled: list[str] = []

        async def cancel(self, request_id: str) -> str:
            self.cancelled.append(request_id)
            return "canceled"

    notes, client = Notes(tmp_path / "notes"), Requests()
    canceller = Canceller(client, Notes(tmp_path / "notes"))
    canceller.add(Cancellation("at step 2", "r1.0", 2, 0.0))
    canceller.add(Cancellation("at once", "r2.0", AT_ONCE, 0.0))
    running = asyncio.create_task(canceller.run(2))
    notes.write("step", make_plan(negative_prompt="r1.0", steps=8), 1)
    await asyncio.sleep(0.2)
    assert client.cancelled == ["at once"]
    notes.write("step", make_plan(negative_prompt="r1.0", steps=8), 2)
    async with asyncio.timeout(10):
        sent = await running
    assert client.cancelled == ["at once", "at step 2"]
    assert [(each.image, each.status) for each in sent] == [("r2.0", "canceled"), ("r1.0", "canceled")]
