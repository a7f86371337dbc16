"""What is said about previews that were made again."""

import pytest

from serve_app.intake.training.pairs import whole_status
from serve_app.intake.training.summary import summary_of
from serve_app.schemas.training import FactInfo, OurImage, Pair, PairComparison, TheirImage
from serve_app.tasks import Status

QUEUED, RUNNING, DONE = Status.IN_QUEUE, Status.IN_PROGRESS, Status.SUCCEEDED
FAILED, CANCELED = Status.FAILED, Status.CANCELED
CAUSE = FactInfo(code="QUANTIZED_BASE", text="the base was quantised", differs=True)
OTHER = FactInfo(code="JPEG", text="it is a JPEG", differs=False)


def pair(psnr_db: float | None = None, status: Status = DONE, *, compared: bool = True, facts=(OTHER,)) -> Pair:
    """A pair whose images are equal unless there is a ratio."""
    comparison = PairComparison(is_equal=psnr_db is None, equal_share=1.0 if psnr_db is None else 0.5, psnr_db=psnr_db)
    return Pair(
        sample=0,
        theirs=TheirImage(file="a.jpg", url="http://a"),
        ours=OurImage(request_id="0" * 32, status=status, url=None, error=None, error_code=None),
        comparison=comparison if compared and status == DONE else None,
        problem=None,
        facts=list(facts),
    )


@pytest.mark.parametrize(
    ("statuses", "whole"),
    [
        ([QUEUED, QUEUED], QUEUED),
        ([QUEUED, RUNNING], RUNNING),
        ([QUEUED, DONE], RUNNING),
        ([RUNNING, FAILED], RUNNING),
        ([DONE, DONE], DONE),
        ([DONE, CANCELED], CANCELED),
        ([CANCELED, FAILED, DONE], FAILED),
    ],
)
def test_status_of_several_requests(statuses, whole):
    assert whole_status(statuses) == whole


def test_nothing_is_said_about_closeness_before_the_end():
    assert summary_of([pair(), pair(status=RUNNING)]) == "1 of 2 previews are made; ask again for the rest."


def test_all_equal():
    assert summary_of([pair(), pair()]).startswith("This service reproduces your previews: all 2 are equal")
    assert summary_of([pair()]).startswith("This service reproduces your previews: the only one is equal")


def test_known_cause_is_named_and_an_unknown_one_is_not_guessed():
    explained, unexplained = pair(31.5, facts=(CAUSE, OTHER)), pair(40.25)
    said = summary_of([pair(), explained])
    assert said.startswith("1 of 2 previews are equal in every pixel; the others are 31.5 dB")
    assert "The base was quantised." in said
    assert "No setting" not in said
    assert "No setting of the job explains this: check" in summary_of([pair(), unexplained])
    said = summary_of([explained, unexplained])
    assert "31.5 to 40.25 dB" in said
    assert "No setting of the job explains all of this: check" in said


def test_other_image_is_not_explained_by_roundings():
    said = summary_of([pair(5.1, facts=(CAUSE, OTHER)), pair(6.0)])
    assert "That far apart, they are different images: check that the checkpoint" in said
    assert "quantised" not in said


def test_what_failed_and_what_could_not_be_compared_is_counted():
    said = summary_of([pair(), pair(status=FAILED), pair(status=CANCELED), pair(compared=False)])
    assert said.startswith("Of those that could be compared, the only one is equal")
    assert "2 previews could not be made" in said
    assert "1 of 4 could not be compared" in said
