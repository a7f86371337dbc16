"""The scale that a file says, over HTTP: in receipts and notes, from alphas and from metadata."""

import json
import struct
from collections.abc import Mapping
from io import BytesIO
from math import isnan
from pathlib import Path

import pytest
from fsspec.spec import AbstractBufferedFile

from serve_app.adapters.header import read_header
from serve_app.adapters.lora_root import BEGINNING_BYTES
from serve_app.adapters.receipts import read_receipt
from serve_app.adapters.scalar_tensors import scalar
from serve_app.models.architecture import MINIATURE_ARCHITECTURE, PUBLISHED
from serve_app.tasks import Factor
from tests.unit.conftest import SHARES_AN_APPLICATION, safetensors_bytes

pytestmark = SHARES_AN_APPLICATION

BLOCK = "transformer_blocks.0.attn"
# Ranks of three modules.
RANKS = {f"{BLOCK}.to_q": 4, f"{BLOCK}.to_k": 2, f"{BLOCK}.to_v": 8}


def lora_bytes(
    alphas: Mapping[str, tuple[str, bytes]] = {},
    metadata: Mapping[str, str] = {},
    prefix: str = "transformer.",
    ranks: Mapping[str, int] = RANKS,
) -> bytes:
    """A LoRA of zeros in fp32; alphas are a dtype and the bytes of a value by module, laid between the tensors."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    body = b""

    def add(name: str, dtype: str, shape: list[int], data: bytes) -> None:
        nonlocal body
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data

    for module, rank in ranks.items():
        add(f"{prefix}{module}.lora_A.weight", "F32", [rank, 16], bytes(rank * 64))
        if module in alphas:
            dtype, data = alphas[module]
            add(f"{prefix}{module}.alpha", dtype, [], data)
        add(f"{prefix}{module}.lora_B.weight", "F32", [16, rank], bytes(rank * 64))
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + body


@pytest.fixture
def explained(client, config, make_body):
    """The record and the notes for a file of these bytes."""

    def explained(data: bytes) -> tuple[dict, list[str]]:
        Path(config.lora_root, "file.safetensors").write_bytes(data)
        answer = client.post("/v1/explain", json=make_body(prompt="p", width=96, loras=[{"path": "file.safetensors"}]))
        assert answer.status_code == 200, answer.text
        [lora] = answer.json()["effective"][0]["loras"]
        return lora["receipt"], answer.json()["notes"]

    return explained


@pytest.fixture
def refused(client, config, make_body):
    """The error of a POST with a file of these bytes."""

    def refused(data: bytes) -> dict:
        Path(config.lora_root, "file.safetensors").write_bytes(data)
        body = make_body(prompt="p", width=96, loras=[{"path": "file.safetensors"}])
        answer = client.post("/v1/inference", json=body)
        assert answer.status_code == 400, answer.text
        return answer.json()["detail"]["error"]

    return refused


def config_of(**keys: object) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in keys.items()})}


ALL_OF_RANK_4 = dict.fromkeys(RANKS, 4)
PATTERNS = {"r": 4, "rank_pattern": {f"{BLOCK}.to_k": 2, "^" + f"{BLOCK}.to_v": 8}}
FOUND = {
    "none": ({}, RANKS, ("none", 1.0, 1.0, 1.0)),
    "r and lora_alpha": (config_of(r=4, lora_alpha=16), ALL_OF_RANK_4, ("lora_adapter_metadata", 4.0, 4.0, 4.0)),
    "rslora": (
        config_of(r=4, lora_alpha=16, use_rslora=True),
        ALL_OF_RANK_4,
        ("lora_adapter_metadata", 8.0, 8.0, 8.0),
    ),
    "bare keys": (
        {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 2})},
        ALL_OF_RANK_4,
        ("lora_adapter_metadata", 0.5, 0.5, 0.5),
    ),
    "rank_pattern": (config_of(lora_alpha=16, **PATTERNS), RANKS, ("lora_adapter_metadata", 2.0, 4.0, 8.0)),
    "alpha_pattern": (
        config_of(lora_alpha=16, alpha_pattern={"to_k": 1, "attn.to_k": 100}, **PATTERNS),
        RANKS,
        ("lora_adapter_metadata", 0.5, 2.0, 4.0),
    ),
    "another component": ({"lora_adapter_metadata": '{"text_encoder.r": 4}'}, RANKS, None),
}


@pytest.mark.parametrize("name", FOUND)
def test_metadata_scales_the_file(explained, refused, name):
    metadata, ranks, expected = FOUND[name]
    if expected is None:
        # PEFT's defaults are of rank 8, and so is nothing in the file but one module.
        assert "contradicts itself" in refused(lora_bytes(metadata=metadata, ranks=ranks))["message"]
        return
    factor = explained(lora_bytes(metadata=metadata, ranks=ranks))[0]["factor"]
    assert (factor["source"], factor["min"], factor["median"], factor["max"]) == expected


ALPHAS = {
    "F64": struct.pack("<d", 4),
    "F32": struct.pack("<f", 4),
    "F16": struct.pack("<e", 4),
    "BF16": struct.pack("<f", 4)[2:],
    "I64": struct.pack("<q", 4),
    "I32": struct.pack("<i", 4),
    "U8": b"\x04",
    "F8_E5M2": struct.pack("<e", 4)[1:],
    "F8_E4M3": b"\x48",
}


@pytest.mark.parametrize("dtype", ALPHAS)
def test_alphas_between_the_tensors_are_in_the_receipt(explained, dtype):
    """Before the metadata, which says something else."""
    data = lora_bytes(dict.fromkeys(RANKS, (dtype, ALPHAS[dtype])), config_of(r=3, lora_alpha=300))
    receipt, notes = explained(data)
    assert receipt["factor"] == {"source": "alpha tensors", "min": 0.5, "median": 1.0, "max": 2.0}
    assert (receipt["dtype"], notes) == ("F32", [])


def test_alpha_counts_for_its_module_and_metadata_for_the_others(explained):
    data = lora_bytes({f"{BLOCK}.to_q": ("F32", ALPHAS["F32"])}, config_of(r=4, lora_alpha=16), ranks=ALL_OF_RANK_4)
    factor = explained(data)[0]["factor"]
    assert factor == {"source": "alpha tensors+lora_adapter_metadata", "min": 1.0, "median": 4.0, "max": 4.0}


class RemoteFile(AbstractBufferedFile):
    """A file of a store that sends ranges, as fsspec reads it; `fetched` are those that it was asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.fetched: list[tuple[int, int]] = []
        super().__init__(None, "file", size=len(data), block_size=BEGINNING_BYTES, cache_type="readahead")

    def _fetch_range(self, start: int, end: int) -> bytes:
        self.fetched.append((start, end))
        return self.data[start:end]

    def close(self) -> None:
        """Nothing is to be flushed."""


def test_remote_file_is_not_read_for_its_alphas():
    """Their values are unknown at the POST if they are scattered over more of a file than is read of it anyway."""
    alphas = {f"{BLOCK}.{name}": ("F32", ALPHAS["F32"]) for name in ("to_q", "to_k")}
    for rank, known in ((4, True), (8192, False)):
        ranks = {f"{BLOCK}.to_q": rank, f"{BLOCK}.to_k": 4}
        data = lora_bytes(alphas, ranks=ranks)
        for file in (RemoteFile(data), BytesIO(data[:BEGINNING_BYTES])):
            header = read_header(file, len(data), "file")
            factor = read_receipt(header, len(data), "file", "qwen_image", MINIATURE_ARCHITECTURE).factor
            assert factor == (
                Factor("alpha tensors", 1.0, 1.0, 1.0) if known else Factor("alpha tensors", None, None, None)
            )
            assert len(getattr(file, "fetched", [])) <= 2


def test_values_of_eight_bits_are_those_of_their_definition():
    assert [scalar("F8_E4M3", bytes([bits])) for bits in (0x00, 0x01, 0x38, 0x7E, 0xC8)] == [0, 2**-9, 1, 448, -4]
    assert isnan(scalar("F8_E4M3", b"\x7f"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_alpha_that_is_not_a_number_is_refused_at_the_post(refused, value):
    error = refused(lora_bytes({f"{BLOCK}.to_q": ("F32", struct.pack("<f", value))}))
    assert (error["code"], "an alpha that is not a number" in error["message"]) == ("LORA_INVALID_FILE", True)


@pytest.mark.parametrize(
    ("metadata", "code", "reason"),
    [
        (config_of(r=4, lora_alpha=16, use_dora=True), "LORA_INCOMPATIBLE", "DoRA cannot be applied"),
        ({"use_dora": "True"}, "LORA_INCOMPATIBLE", "DoRA cannot be applied"),
        (config_of(r=4, init_lora_weights="pissa_niter_4"), "LORA_INCOMPATIBLE", "other weights than the model's"),
        (config_of(r=4, layer_replication=[[0, 4]]), "LORA_INCOMPATIBLE", "says layer_replication"),
        (config_of(r=8, lora_alpha=16), "LORA_INCOMPATIBLE", "contradicts itself"),
        (config_of(r=4, alpha_pattern={"(.*)*to_q": 4}), "LORA_INCOMPATIBLE", "a regular expression"),
        (config_of(r=4, alpha_pattern=[1]), "LORA_INVALID_FILE", "alpha_pattern is not a JSON object"),
        (config_of(r=0), "LORA_INVALID_FILE", "a rank in it is not a positive whole number"),
        (config_of(r="4"), "LORA_INVALID_FILE", "a rank in it is not a positive whole number"),
        (config_of(r=4, lora_alpha=float("nan")), "LORA_INVALID_FILE", "an alpha in it is not a number"),
        (config_of(r=4, lora_alpha=10**400), "LORA_INVALID_FILE", "an alpha in it is not a number"),
        (config_of(r=4, lora_alpha=None), "LORA_INVALID_FILE", "an alpha in it is not a number"),
        ({"lora_adapter_metadata": "not json"}, "LORA_INVALID_FILE", "it is not JSON"),
        ({"lora_adapter_metadata": "[" * 5000}, "LORA_INVALID_FILE", "it is not JSON"),
        ({"lora_adapter_metadata": "[]"}, "LORA_INVALID_FILE", "it is not a JSON object"),
    ],
)
def test_metadata_that_cannot_be_applied_is_refused(refused, metadata, code, reason):
    error = refused(lora_bytes(metadata=metadata, ranks=ALL_OF_RANK_4))
    assert (error["code"], reason in error["message"]) == (code, True), error["message"]


@pytest.mark.parametrize("key", ["ss_network_alpha", "alpha", "lora_alpha"])
def test_flat_alpha_is_ignored_and_noted(explained, key):
    receipt, [note] = explained(lora_bytes(metadata={key: "16"}))
    assert receipt["factor"] == {"source": "none", "min": 1.0, "median": 1.0, "max": 1.0}
    assert f"'file.safetensors' has {key}: '16' in its metadata and no alpha" in note
    assert receipt["notes"] == [note]
    alphas = dict.fromkeys(RANKS, ("F32", ALPHAS["F32"]))
    assert explained(lora_bytes(alphas, {key: "16"}))[1] == []


def test_pefts_own_format_without_a_scale_is_noted(explained):
    [note] = explained(lora_bytes(prefix="base_model.model."))[1]
    assert "adapter_config.json is not read: its scale counts as 1" in note
    metadata = config_of(r=4, lora_alpha=16)
    assert explained(lora_bytes(metadata=metadata, prefix="base_model.model.", ranks=ALL_OF_RANK_4))[1] == []


@pytest.mark.parametrize(
    ("metadata", "other"),
    [
        ({"ss_base_model_version": "qwen_image"}, None),
        ({"ss_base_model_version": "qwen_image_edit"}, None),
        ({"ss_base_model_version": "qwen_image_edit_plus"}, "qwen_image_edit_plus"),
        ({"modelspec.architecture": "Qwen-Image-Edit-2511/lora"}, "qwen_image_edit_plus_2511"),
        ({"modelspec.architecture": "Qwen-Image-2512/lora"}, "qwen_image_2512"),
        ({"ss_base_model_version": "sdxl_edit_2511"}, None),
    ],
)
def test_file_trained_for_another_model_of_the_family_is_noted(explained, metadata, other):
    """The requests are for qwen_image_edit."""
    _, notes = explained(lora_bytes(metadata=metadata))
    assert len(notes) == (other is not None)
    assert all(f"was trained for another model of the family, {other}:" in note for note in notes)


def test_result_says_the_same_as_explain(client, config, make_body):
    Path(config.lora_root, "file.safetensors").write_bytes(lora_bytes(metadata={"alpha": "16"}))
    body = make_body(prompt="p", width=96, loras=[{"path": "file.safetensors"}])
    result = client.get(client.post("/v1/inference", json=body).json()["result_url"]).json()
    assert result["metadata"]["notes"] == client.post("/v1/explain", json=body).json()["notes"]
    assert len(result["metadata"]["notes"]) == 1


def test_full_size_file_on_the_miniature_says_what_to_configure(refused):
    assert MINIATURE_ARCHITECTURE != PUBLISHED
    name = "transformer_blocks.40.attn.to_q"
    shapes = {f"transformer.{name}.lora_A.weight": (2, 3072), f"transformer.{name}.lora_B.weight": (3072, 2)}
    message = refused(safetensors_bytes(shapes))["message"]
    assert "this service runs a miniature of the model qwen_image_edit" in message
    assert "set `checkpoint` to Qwen/Qwen-Image-Edit" in message
