"""When a request has kept the time that was predicted for it at its POST."""

# A prediction is an average: images of later requests may come first, and an editor may load adapters or compile. A
# request may take this much longer, and a few seconds in any case.
TOLERANCE, GRACE_S = 1.5, 10.0


def is_kept(predicted_s: float, took_s: float) -> bool:
    return took_s <= predicted_s * TOLERANCE + GRACE_S
