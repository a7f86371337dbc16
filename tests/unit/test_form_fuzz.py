"""Damaged forms through the whole application: an answer that says what is wrong, never an error of the service."""

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.conftest import as_png, noise_image

# About 3 seconds on an idle core.
ROUNDS = 400
BOUNDARY = "a-boundary"
ROUTES = ("/v1/explain", "/v1/inference", "/v1/uploads")
PHOTO = as_png(noise_image(32, 32))
# Bytes that mean something to a parser of forms.
PIECES = (
    b"\r\n",
    b"--",
    b"\r\n--a-boundary",
    b"--a-boundary--\r\n",
    b":",
    b'"',
    b";",
    b"=",
    b"\0",
    b"\xff\xfe",
    b"name=",
)
DISPOSITIONS = (
    'form-data; name="{name}"',
    'form-data; name="{name}"; filename="x.png"',
    'form-data; name="{name}"; filename=""',
    "form-data; name={name}; filename=x",
    "form-data; filename=x",
    "form-data; name*=utf-8''{name}",
    'attachment; name="{name}',
    "{name}",
    "",
)


class Damage:
    """Makes forms that are nearly right, by a sequence of random numbers."""

    def __init__(self, make_body: Callable[..., dict], seed: int) -> None:
        self._make_body = make_body
        self._random = random.Random(seed)

    def form(self) -> tuple[bytes, str]:
        """A body and its Content-Type."""
        chance = self._random
        body = b"".join(map(self._part, self._parts())) + f"--{BOUNDARY}--\r\n".encode()
        for _ in range(chance.choice((0, 0, 1, 1, 3))):
            body = chance.choice((self._cut, self._insert, self._remove, self._flip))(body)
        types = [f"multipart/form-data; boundary={BOUNDARY}"] * 12
        types += [
            f'multipart/form-data; boundary="{BOUNDARY}"',
            "multipart/form-data; boundary=a",
            "multipart/form-data",
        ]
        types += [f"multipart/mixed; boundary={BOUNDARY}", "application/json", "multipart/form-data; boundary=\xff;;="]
        return body, chance.choice(types)

    def _parts(self) -> list[tuple[str, bytes]]:
        chance = self._random
        parts = [
            ("request", self._request()),
            ("photo", chance.choice((PHOTO, PHOTO, PHOTO, b"", b"text", PHOTO[:60]))),
        ]
        names, contents = ("request", "photo", "other", "", "ü", "n" * 300), (PHOTO, b"1")
        more = chance.choice((0, 0, 0, 1, 2))
        parts += [(chance.choice(names), chance.choice(contents)) for _ in range(more)]
        if chance.random() < 0.2:
            parts.pop(chance.randrange(len(parts)))
        chance.shuffle(parts)
        return parts

    def _request(self) -> bytes:
        names = ("part:photo",) * 6 + (
            "part:",
            "part:request",
            "part:other",
            "part:\0",
            "part:" + "x" * 999,
            "upload:x",
        )
        body: dict[str, Any] = self._make_body(ctrl_img=self._random.choice(names))
        if self._random.random() < 0.1:
            body[self._random.choice(("model", "prompts", "loras"))] = self._random.choice(
                (None, 1, [], {}, "part:photo")
            )
        text = json.dumps(body).encode()
        return self._flip(text) if self._random.random() < 0.1 else text

    def _part(self, part: tuple[str, bytes]) -> bytes:
        name, content = part
        usual = DISPOSITIONS[name != "request"]
        disposition = usual if self._random.random() < 0.8 else self._random.choice(DISPOSITIONS)
        headers = ["Content-Disposition: " + disposition.format(name=name)]
        if self._random.random() < 0.1:
            headers += self._random.choice((["X: y"] * 9, ["no colon"], ["Long: " + "x" * 5000], ["Content-Type: a/b"]))
        head = f"--{BOUNDARY}\r\n" + "\r\n".join(headers) + "\r\n\r\n"
        return head.encode() + content + b"\r\n"

    def _cut(self, body: bytes) -> bytes:
        return body[: self._random.randrange(len(body) + 1)]

    def _insert(self, body: bytes) -> bytes:
        at = self._random.randrange(len(body) + 1)
        return body[:at] + self._random.choice(PIECES) * self._random.choice((1, 1, 2, 50)) + body[at:]

    def _remove(self, body: bytes) -> bytes:
        at = self._random.randrange(len(body) + 1)
        return body[:at] + body[at + self._random.choice((1, 2, 10, 200)) :]

    def _flip(self, body: bytes) -> bytes:
        changed = bytearray(body)
        if changed:
            changed[self._random.randrange(len(changed))] = self._random.randrange(256)
        return bytes(changed)


def outcome_of(answer: Any) -> str:
    """The code of an answer, which must have the contract's shape."""
    assert 200 <= answer.status_code < 500, answer.text
    if answer.status_code == 200:
        return "ok"
    detail = answer.json()["detail"]
    if answer.status_code == 422:
        assert all(set(fault) == {"type", "loc", "msg"} for fault in detail)
        return "shape"
    assert set(detail["error"]) == {"code", "message", "details"}
    assert 10 < len(detail["error"]["message"]) < 1_000
    return str(detail["error"]["code"])


def outcomes(client: Any, make_body: Callable[..., dict], seeds: Sequence[int]) -> Counter[str]:
    found: Counter[str] = Counter()
    for seed in seeds:
        body, content_type = Damage(make_body, seed).form()
        route = ROUTES[seed % len(ROUTES)]
        answer = client.post(route, content=body, headers={"content-type": content_type.encode("latin-1")})
        try:
            found[outcome_of(answer)] += 1
        except Exception as error:
            error.add_note(f"{route}, seed {seed}: {content_type!r} {body!r}"[:4000])
            raise
    return found


def test_damaged_forms_are_never_an_error_of_the_service(client, make_body):
    found = outcomes(client, make_body, range(ROUNDS))
    assert found["BODY_INVALID"] > ROUNDS // 4
    assert min(found["ok"], found["CONTROL_IMAGE_INVALID"], found["shape"]) > ROUNDS // 50


@pytest.mark.parametrize("route", ROUTES)
def test_form_that_is_cut_off_is_refused_wherever_it_ends(client, make_body, route):
    parts = [("request", (None, json.dumps(make_body(ctrl_img="part:photo")))), ("photo", ("x.png", PHOTO))]
    request = client.build_request("POST", route, files=parts)
    whole, headers = request.read(), {"content-type": request.headers["content-type"]}
    chance = random.Random(1)
    for end in [0, 1, 2, len(whole) - 4, *(chance.randrange(len(whole) - 4) for _ in range(30))]:
        assert outcome_of(client.post(route, content=whole[:end], headers=headers)) == "BODY_INVALID", end
