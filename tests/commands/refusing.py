"""A builder that takes no config. Serve calls it four times, so it imports nothing."""


def build(args: dict[str, object]) -> None:
    raise ValueError("nobody can build this")
