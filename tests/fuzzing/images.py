"""Mutated image files, through the service's own decoder processes with their limits of time and memory."""

import asyncio
import random
import time
import zlib
from functools import cache

from serve_app.config import FetchConfig
from serve_app.errors import ControlImageInvalid
from serve_app.images.containers import PNG_SIGNATURE
from serve_app.images.decoder_pool import Decoders
from tests.conftest import noise_image
from tests.fuzzing.checks import LoggedErrors
from tests.fuzzing.mutation import changed_bytes
from tests.fuzzing.tally import Tally
from tests.unit.heavy_images import saved

# The longest CPU time that a file may take (s), which the decoder itself enforces.
CPU_S = 1.0
# Bytes that mean something to one of the formats.
ODD_BYTES = (
    b"\xff\xd8",
    b"\xff\xda",
    b"\xff\xd9",
    b"\xff\xc4",
    b"\xff\xc2",
    b"\xff\xd0",
    b"IDAT",
    b"IHDR",
    b"PLTE",
    b"zTXt",
)
ODD_BYTES += (
    b"acTL",
    b"fdAT",
    b"iCCP",
    b"tRNS",
    b"GIF89a",
    b"!\xff\x0b",
    b",\0\0\0\0",
    b";",
    b"RIFF",
    b"VP8X",
    b"ANMF",
    b"ftyp",
)
ODD_BYTES += (
    b"moov",
    b"iloc",
    b"ipma",
    b"mdat",
    b"II*\0",
    b"MM\0*",
    b"BM",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
)


@cache
def sound_files() -> tuple[bytes, ...]:
    """Small files of every format that the service reads, in the variants that decoders treat differently."""
    image = noise_image(48, 32)
    frames = {"save_all": True, "append_images": [noise_image(48, 32, seed) for seed in (1, 2)]}
    return (
        saved(image, "PNG"),
        saved(image.convert("P"), "PNG", dpi=(72, 72)),
        saved(image.convert("RGBA"), "PNG"),
        saved(image.convert("I;16"), "PNG"),
        saved(image, "PNG", **frames),
        saved(image, "JPEG"),
        saved(image, "JPEG", progressive=True),
        saved(image.convert("CMYK"), "JPEG"),
        saved(image, "WEBP"),
        saved(image, "WEBP", lossless=True),
        saved(image, "WEBP", **frames),
        saved(image, "GIF", **frames),
        saved(image, "BMP"),
        saved(image, "TIFF"),
        saved(image, "TIFF", compression="tiff_lzw"),
        saved(image, "TIFF", compression="jpeg"),
        saved(image, "TIFF", compression="tiff_adobe_deflate", **frames),
        saved(image, "AVIF"),
        saved(image, "AVIF", **frames),
    )


def mutated_images(count: int, seed: int) -> list[bytes]:
    """Files with one to four changes."""
    chance, files = random.Random(seed), sound_files()
    made = []
    for _ in range(count):
        data = chance.choice(files)
        for _ in range(chance.choice((1, 1, 2, 4))):
            data = changed_bytes(data, chance, ODD_BYTES)
        made.append(with_checksums(data) if chance.random() < 0.7 else data)
    return made


def with_checksums(data: bytes) -> bytes:
    """A PNG whose checksums are right, so that its damage reaches the decoder. Other files as they are."""
    if not data.startswith(PNG_SIGNATURE):
        return data
    made, at = bytearray(data), len(PNG_SIGNATURE)
    while at + 12 <= len(made):
        end = at + 8 + int.from_bytes(made[at : at + 4], "big")
        if end + 4 > len(made):
            break
        made[end : end + 4] = zlib.crc32(made[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(made)


def fuzz_images(count: int, seed: int) -> Tally:
    """Decode so many mutated images. A fault is a decoder that ended, took too long or needed too much memory."""
    return asyncio.run(_round(count, seed))


async def _round(count: int, seed: int) -> Tally:
    tally, started = Tally(rounds=1, next_seed=seed + 1), time.monotonic()
    decoders = Decoders(FetchConfig(decode_timeout_s=CPU_S))
    with LoggedErrors() as logged:
        for number, data in enumerate(mutated_images(count, seed)):
            began = time.monotonic()
            outcome = await _outcome(decoders, data)
            tally.time(time.monotonic() - began, f"seed {seed}, file {number}: {outcome}")
            tally.add(outcome)
            if outcome.startswith("fault") or logged.found:
                tally.add_fault(f"seed {seed}, file {number}: {outcome} {logged.found}: {data[:300].hex()}")
                logged.found.clear()
    await decoders.close()
    tally.seconds = time.monotonic() - started
    return tally


async def _outcome(decoders: Decoders, data: bytes) -> str:
    try:
        facts = await decoders.facts(data, "apply", "")
    except ControlImageInvalid as error:
        slow_or_large = "decoding it takes" in error.message or "makes the decoder fail" in error.message
        return f"fault: {error.message}" if slow_or_large else "refused"
    except Exception as error:
        return f"fault: {error!r}"
    return f"decoded as {facts.format}"
