"""Mutated LoRA files, through what a POST does with them: the header, its receipt, and the names of what fits."""

import io
import json
import random
import resource
import time
from functools import cache
from typing import Any

from serve_app.adapters.header import read_header
from serve_app.adapters.receipts import read_receipt
from serve_app.errors import RequestError
from serve_app.models.architecture import MINIATURE_ARCHITECTURE
from tests.fuzzing.mutation import changed_bytes, changed_json, changed_text
from tests.fuzzing.tally import Tally
from tests.unit.conftest import PAIR, TO_Q, safetensors_bytes

# CPU time of one file (s), and how much the largest may add to this process's memory (bytes).
CPU_S, MEMORY_BYTES = 1.0, 300 * 2**20
ODD_BYTES = (
    b"__metadata__",
    b"data_offsets",
    b"lora_A",
    b".alpha",
    b"hada_w1_a",
    b"lokr_w1",
    b"BF16",
    b"F8_E4M3",
    b"{",
    b"}",
)
ODD_BYTES += (
    b"[",
    b"]",
    b'"',
    b",",
    b"\\ud800",
    b"1e999",
    b"NaN",
    b"-1",
    b"\0\0\0\0\0\0\0\0",
    b"\xff" * 8,
    b"PK\x03\x04",
)


# What trainers keep as JSON in the metadata.
TRAINERS = {
    "ss_tag_frequency": '{"1_sks": {"a": 1}}',
    "software": '{"name": "ai-toolkit", "version": "0.7.2"}',
    "training_info": '{"step": 500, "epoch": 1}',
    "lora_adapter_metadata": '{"transformer.r": 2, "transformer.lora_alpha": 4, "transformer.rank_pattern": {"x": 2}}',
    "ss_network_args": '{"algo": "lokr", "factor": "4"}',
    "format": "pt",
}


def file_of(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


@cache
def sound_files() -> tuple[bytes, ...]:
    """LoRAs as trainers write them, of each kind."""
    base = TO_Q
    lokr = {f"{base}.lokr_w1": (2, 2), f"{base}.lokr_w2": (8, 8), f"{base}.alpha": ()}
    loha = {
        f"{base}.hada_{name}": (2, 16) if name.endswith("b") else (16, 2) for name in ("w1_a", "w1_b", "w2_a", "w2_b")
    }
    kohya = {"lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight": (2, 16)}
    kohya |= {"lora_unet_transformer_blocks_0_attn_to_q.lora_up.weight": (16, 2)}
    return (
        safetensors_bytes(),
        safetensors_bytes(PAIR | {f"{base}.alpha": ()}, TRAINERS),
        safetensors_bytes(lokr, TRAINERS),
        safetensors_bytes(loha),
        safetensors_bytes({f"{base}.diff": (16, 16), f"{base}.diff_b": (16,)}),
        safetensors_bytes(kohya, TRAINERS),
    )


def mutated(chance: random.Random) -> bytes:
    """A file with one to four changes: of its header's values, of its header's text, or of all bytes."""
    data = chance.choice(sound_files())
    for _ in range(chance.choice((1, 1, 2, 4))):
        length = int.from_bytes(data[:8], "little")
        header, body = data[8 : 8 + length], data[8 + length :]
        way = chance.random()
        try:
            if way < 0.2:
                data = file_of(_with_metadata(json.loads(header), chance), body)
            elif way < 0.6:
                data = file_of(changed_json(json.loads(header), chance), body)
            elif way < 0.85:
                data = file_of(changed_bytes(header, chance, ODD_BYTES), body)
            else:
                data = changed_bytes(data, chance, ODD_BYTES)
        except (ValueError, RecursionError):
            data = changed_bytes(data, chance, ODD_BYTES)
    return data


def _with_metadata(entries: Any, chance: random.Random) -> Any:
    """The header with other metadata: its tensors stay those of a sound file."""
    texts = {name: changed_text(text, chance) for name, text in TRAINERS.items() if chance.random() < 0.5}
    return {**entries, "__metadata__": texts} if isinstance(entries, dict) else entries


def fuzz_safetensors(count: int, seed: int) -> Tally:
    """Read so many mutated LoRA files. A fault is any error that is not the caller's, and too much time or memory."""
    tally, chance, started = Tally(rounds=1, next_seed=seed + 1), random.Random(seed), time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        data, began = mutated(chance), time.thread_time()
        outcome = _outcome(data)
        seconds = time.thread_time() - began
        tally.time(seconds, f"seed {seed}, file {number}: {outcome}")
        tally.add(outcome)
        if outcome.startswith("fault") or seconds > CPU_S:
            tally.add_fault(f"seed {seed}, file {number}: {outcome} after {seconds:.2f} s: {data[:300]!r}")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > MEMORY_BYTES:
        tally.add_fault(f"seed {seed}: the memory grew by {grown} bytes")
    tally.seconds = time.monotonic() - started
    return tally


def _outcome(data: bytes) -> str:
    try:
        header = read_header(io.BytesIO(data), len(data), "a file")
        read_receipt(header, len(data), "a file", "qwen_image_edit", MINIATURE_ARCHITECTURE)
    except RequestError as error:
        return error.code
    except Exception as error:
        return f"fault: {error!r}"
    return "fits"
