"""What came out of previews that were made again, in words for the owner of the LoRA."""

from collections.abc import Sequence

from serve_app.schemas.training import Pair
from serve_app.tasks import Status

# Images that are further apart (dB, PSNR) do not show the same thing; no rounding does that.
OTHER_IMAGE_DB = 15.0
OTHER_IMAGES = (
    "That far apart, they are different images: check that the checkpoint, the job's base model, the sample settings "
    "and the control images are those of the training."
)


def summary_of(pairs: Sequence[Pair]) -> str:
    """A few sentences: whether this service reproduces the previews, and otherwise what is known about why not."""
    running = sum(not pair.ours.status.ended for pair in pairs)
    if running:
        return f"{len(pairs) - running} of {len(pairs)} previews are made; ask again for the rest."
    lost = [pair for pair in pairs if pair.ours.status in (Status.FAILED, Status.CANCELED)]
    compared = [pair for pair in pairs if pair.comparison is not None]
    sentences = _about_compared(compared, are_all=len(compared) == len(pairs))
    if lost:
        sentences.append(f"{_count(lost, 'preview')} could not be made; post the same body again to try them again.")
    if rest := len(pairs) - len(lost) - len(compared):
        sentences.append(f"{rest} of {len(pairs)} could not be compared; `problem` of each says why.")
    return " ".join(sentences)


def _about_compared(compared: Sequence[Pair], *, are_all: bool) -> list[str]:
    others = [pair for pair in compared if pair.comparison is not None and not pair.comparison.is_equal]
    if not compared:
        return ["Nothing could be compared."]
    equal = len(compared) - len(others)
    if not others:
        beginning = "This service reproduces your previews: " if are_all else "Of those that could be compared, "
        return [f"{beginning}{_all(equal)} equal in every pixel, once ours is saved as the trainer saves its own."]
    ratios = [pair.comparison.psnr_db for pair in others if pair.comparison and pair.comparison.psnr_db is not None]
    closeness = f"{min(ratios):g}" if min(ratios) == max(ratios) else f"{min(ratios):g} to {max(ratios):g}"
    sentences = [
        f"{equal} of {len(compared)} previews are equal in every pixel; the others are {closeness} dB (PSNR) from the "
        "trainer's."
    ]
    if (distant := [pair for pair in others if _is_another_image(pair)]) and len(distant) == len(others):
        sentences.append(OTHER_IMAGES)
        return sentences
    causes = {fact.code: fact.text for pair in others for fact in pair.facts if fact.differs}
    sentences += [f"{text[0].upper()}{text[1:]}." for text in causes.values()]
    if any(not any(fact.differs for fact in pair.facts) for pair in others):
        sentences.append(
            "No setting of the job explains "
            + ("all of this" if causes else "this")
            + ": check that this service runs the job's base model without lossy options (quantization, feature cache) "
            "and in the trainer's dtype, that the sample settings and the control images have not changed since, and "
            "whether the trainer had other versions of torch, diffusers or transformers installed than it pins."
        )
    return sentences


def _is_another_image(pair: Pair) -> bool:
    ratio = pair.comparison.psnr_db if pair.comparison else None
    return ratio is not None and ratio < OTHER_IMAGE_DB


def _all(number: int) -> str:
    return "the only one is" if number == 1 else f"all {number} are"


def _count(items: Sequence[object], noun: str) -> str:
    return f"{len(items)} {noun}" + ("" if len(items) == 1 else "s")
