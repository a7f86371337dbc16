"""Headers that somebody wrote on purpose: refused at the POST, and read in a bounded time."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest
from safetensors import SafetensorError, deserialize

from serve_app.adapters.header import (
    DTYPE_BITS,
    MAX_BRACKETS,
    MAX_HEADER_BYTES,
    MAX_NAME,
    MAX_TENSORS,
    Header,
    read_header,
)
from serve_app.adapters.receipts import read_receipt
from serve_app.errors import LoraIncompatible, LoraInvalidFile
from serve_app.models.architecture import PUBLISHED
from tests.unit.conftest import PAIR, SHARES_AN_APPLICATION, TO_Q

pytestmark = SHARES_AN_APPLICATION

# Seconds of a core that the worst header may take on a slow machine; on a fast one it takes a tenth.
BOUND_S = 5.0


def file_of(header: str | bytes, body: bytes = b"") -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return len(header).to_bytes(8, "little") + header + body


def read(data: bytes) -> Header:
    return read_header(BytesIO(data), len(data), "file")


def entry(shape: list, begin: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BROKEN = {
    "a shape of 131,000 numbers": (
        '{"x":{"dtype":"F32","shape":[' + ",".join("9" * 131_000) + '],"data_offsets":[0,4]}}',
        4,
    ),
    "huge dimensions": (json.dumps({"x": entry([2**63] * 8, 0, 4)}), 4),
    "a number of 5,000 digits": ('{"x":{"dtype":"F32","shape":[' + "1" * 5000 + '],"data_offsets":[0,4]}}', 4),
    "a number of 4,000 digits": ('{"x":{"dtype":"F32","shape":[' + "1" * 4000 + '],"data_offsets":[0,4]}}', 4),
    "a float": ('{"x":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}', 4),
    "true for a number": ('{"x":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', 4),
    "NaN": ('{"x":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', 4),
    "deep nesting": ('{"x":' + "[" * 100_000 + "]" * 100_000 + "}", 0),
    "very many lists": ('{"x":[' + "[]," * MAX_BRACKETS + "[]]}", 0),
    "a key twice": (
        '{"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        4,
    ),
    "a dtype twice": ('{"x":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4),
    "overlap": (json.dumps({"x": entry([2], 0, 8), "y": entry([2], 4, 12)}), 12),
    "the same place twice": (json.dumps({"x": entry([2], 0, 8), "y": entry([2], 0, 8)}), 8),
    "a hole": (json.dumps({"x": entry([1], 0, 4), "y": entry([1], 8, 12)}), 12),
    "a hole at the start": (json.dumps({"x": entry([1], 4, 8)}), 8),
    "a numeric metadata value": ('{"__metadata__":{"step":3}}', 0),
    "a nested metadata value": ('{"__metadata__":{"step":{}}}', 0),
    "metadata that is a list": ('{"__metadata__":[]}', 0),
    "half a surrogate pair in a value": ('{"__metadata__":{"name":"\\ud83d"}}', 0),
    "half a surrogate pair in a key": ('{"__metadata__":{"\\ud83d":"name"}}', 0),
    "a list for a header": ("[]", 0),
    "UTF-16": ('{"x":1}'.encode("utf-16"), 0),
    "half a byte": (json.dumps({"x": entry([1], 0, 1, "F4")}), 1),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_header_is_refused_where_safetensors_refuses_it(name):
    header, body = BROKEN[name]
    data = file_of(header, bytes(body))
    started = time.thread_time()
    with pytest.raises(LoraInvalidFile, match="has a broken safetensors header, which "):
        read(data)
    assert time.thread_time() - started < BOUND_S
    if name not in ("a key twice", "a dtype twice"):
        with pytest.raises(SafetensorError):
            deserialize(data)


def test_over_the_limits_is_refused():
    too_many = {f"{n}": entry([0], 0, 0) for n in range(MAX_TENSORS + 1)}
    for entries, reason in (
        (too_many, f"names more than {MAX_TENSORS} tensors"),
        ({"x" * (MAX_NAME + 1): entry([0], 0, 0)}, f"more than {MAX_NAME} characters"),
        ({"x": entry([1] * 9, 0, 4)}, "more than 8 dimensions"),
    ):
        with pytest.raises(LoraInvalidFile, match=reason):
            read(file_of(json.dumps(entries), bytes(4)))
    with pytest.raises(LoraInvalidFile, match=f"a header of .* bytes; at most {MAX_HEADER_BYTES} are read"):
        read(file_of('{"__metadata__":{"a":"' + "x" * MAX_HEADER_BYTES + '"}}'))


def worst() -> dict[str, Callable[[], bytes]]:
    """The largest headers that are read, each of another kind."""
    shape, size = [1, 1, 1, 1, 1, 1, 1, 1], 4

    def tensors(name: Callable[[int], str], count: int = MAX_TENSORS) -> dict:
        return {name(n): entry(shape, n * size, (n + 1) * size) for n in range(count)}

    def padded(entries: dict) -> bytes:
        """Blanks at the end are within the format."""
        text = json.dumps(entries).encode()
        return file_of(text + b" " * (MAX_HEADER_BYTES - len(text)), bytes(size * len(entries)))

    def patterns() -> bytes:
        names = {f"{n:0>10}": 1 for n in range(200_000)}
        config = {"transformer.r": 2, "transformer.alpha_pattern": names}
        entries = {"__metadata__": {"lora_adapter_metadata": json.dumps(config)}}
        end = 0
        for name, (out, into) in PUBLISHED.linears.items():
            for part, of_part in (("A", [2, into]), ("B", [out, 2])):
                begin, end = end, end + 4 * of_part[0] * of_part[1]
                entries[f"transformer.{name}.lora_{part}.weight"] = entry(of_part, begin, end)
        return file_of(json.dumps(entries), bytes(end))

    return {
        "long names": lambda: padded(tensors(lambda n: f"{n:0>160}")),
        "many alphas": lambda: padded(tensors(lambda n: f"transformer_blocks.{n}.{'a.' * 50}alpha")),
        "many prefixes": lambda: padded(tensors(lambda n: "_orig_mod." * 11 + f"{n}.lora_A.default.weight")),
        "empty strings": lambda: file_of('{"x":[' + '"",' * (MAX_HEADER_BYTES // 3 - 10) + '""]}'),
        "long numbers": lambda: file_of('{"x":[' + ("1" * 4000 + ",") * (MAX_HEADER_BYTES // 4001 - 1) + "1]}"),
        "brackets": lambda: file_of('{"x":[' + "[]," * (MAX_BRACKETS - 4) + "[]]}"),
        "patterns": patterns,
    }


@pytest.mark.parametrize("name", worst())
def test_worst_header_takes_a_bounded_time(name):
    data = worst()[name]()
    assert MAX_HEADER_BYTES / 8 < int.from_bytes(data[:8], "little") <= MAX_HEADER_BYTES
    started = time.thread_time()
    with suppress(LoraInvalidFile, LoraIncompatible):
        read_receipt(read(data), len(data), "file", "qwen_image", PUBLISHED)
    took = time.thread_time() - started
    print(f"{name}: {took:.3f} s")  # noqa: T201  # a figure of docs/adapters.md
    assert took < BOUND_S


def test_largest_real_header_is_far_below_the_limits():
    """A LoHa with alphas and biases on all linears."""
    parts = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha", "diff_b"}
    names = [f"base_model.model.{name}.{part}" for name in PUBLISHED.linears for part in parts]
    header = json.dumps({name: entry([12288, 128], 10**12, 10**12) for name in names})
    assert len(names) < MAX_TENSORS / 3
    assert 3 * len(names) < MAX_BRACKETS / 10
    assert len(header) < MAX_HEADER_BYTES / 4


@pytest.mark.parametrize("dtype", sorted(DTYPE_BITS.keys() - {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}))
def test_dtype_that_cannot_be_applied_is_named(client, config, make_body, dtype):
    """It is a sound file: safetensors opens it, or knows the dtype in a newer version."""
    entries, end = {}, 0
    for name, shape in PAIR.items():
        size = shape[0] * shape[1] * DTYPE_BITS[dtype] // 8
        entries[name] = entry(list(shape), end, end + size, dtype)
        end += size
    Path(config.lora_root, "odd.safetensors").write_bytes(file_of(json.dumps(entries), bytes(end)))
    error = client.post("/v1/inference", json=make_body(loras=[{"path": "odd.safetensors"}])).json()["detail"]["error"]
    assert error["code"] == "LORA_INCOMPATIBLE"
    assert f"{TO_Q}.lora_A.weight': its dtype {dtype} cannot be applied" in error["message"]


@pytest.mark.parametrize("name", ["overlap", "a hole", "a numeric metadata value"])
def test_file_that_safetensors_would_refuse_later_is_refused_at_the_post(client, config, make_body, name):
    header, body = BROKEN[name]
    Path(config.lora_root, "odd.safetensors").write_bytes(file_of(header, bytes(body)))
    answer = client.post("/v1/inference", json=make_body(loras=[{"path": "odd.safetensors"}]))
    assert (answer.status_code, answer.json()["detail"]["error"]["code"]) == (400, "LORA_INVALID_FILE")
