"""Random input for the service: requests, images and LoRA files that are nearly right.

`python -m tests.fuzzing requests --count 100000` sends that many; `make fuzz` runs everything at the nightly size. The
unit tests run the same code with small counts.
"""
