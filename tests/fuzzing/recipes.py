"""Valid requests of each operation, and requests that are nearly valid."""

import base64
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlencode

from tests.fuzzing.asgi import HttpRequest
from tests.fuzzing.mutation import ODD_BYTES, ODD_TEXTS, changed_bytes, changed_json, changed_text
from tests.fuzzing.world import HOST, LORA, MAX_BODY_BYTES, MODELS, World, edit

BOUNDARY = "a-boundary"
FORM_BYTES = (
    *ODD_BYTES,
    b"--a-boundary",
    b"\r\n--a-boundary--\r\n",
    b"--",
    b";",
    b"=",
    b"name=",
    b'; filename="x.png"',
)
# An answer must never repeat it.
TOKEN = "hf_a_secret_that_no_answer_repeats"
# Operations that answer when their images are finished.
WAITING = ("edit_images", "generate_images")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "get", "")
# Values of parameters in queries and headers, by name. The first ones are valid.
VALUES: dict[str, Sequence[str]] = {
    "wait": ("0", "0.01", "-1", "nan", "1e99"),
    "limit": ("1", "50", "0", "-1", "99999999999999999999"),
    "cursor": ("", "MTIz", "eyJhIjogMX0=", "A" * 3_000),
    "status": ("succeeded", "failed", "x"),
    "since": ("2026-01-01T00:00:00Z", "2026-01-01", "9999-12-31T23:59:59+14:00", "0001-01-01T00:00:00Z", "1e30"),
    "until": ("2030-01-01T00:00:00Z", "0", "-1", "99999-01-01"),
    "purge": ("true", "false", "2"),
    "previews": ("true", "0", "x"),
    "rows": ("seeds", "checkpoints", "x"),
    "columns": ("multipliers", "seeds", "x"),
    "page": ("0", "1", "-1", "99999999999999999999"),
    "cell": ("64", "16", "0", "-5", "100000"),
    "format": ("png", "jpeg", "exe"),
    "columns_per_page": ("2", "0", "1000000"),
    "rows_per_page": ("2", "0", "1000000"),
    "thumbnail": ("true", "false", "9"),
    "idempotency-key": ("a", "b", "x" * 255, "x" * 5_000, ""),
    "last-event-id": ("1", "0", "-1", "99999999999", "x"),
    "if-none-match": ('"x"', "*", 'W/"x"', '"'),
    "traceparent": ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-0-0-0", "x"),
    "x-stainless-retry-count": ("0", "1", "-1", "x"),
}
OTHER_HEADERS = (
    "host",
    "origin",
    "accept",
    "accept-encoding",
    "range",
    "content-encoding",
    "transfer-encoding",
    "expect",
)
OTHER_HEADERS += (
    "content-length",
    "x-forwarded-for",
    "forwarded",
    "cookie",
    "x-request-id",
    "x-request-timeout-seconds",
)
CONTENT_TYPES = (
    "application/json",
    "text/plain",
    "application/json; charset=utf-16",
    "multipart/form-data",
    "image/png",
)
CONTENT_TYPES += (
    f"multipart/form-data; boundary={BOUNDARY}",
    "multipart/mixed; boundary=x",
    "application/octet-stream",
    "",
)


class Recipes:
    """Makes requests for a world. The same random numbers and ids make the same requests."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self._world = world
        self._chance = chance
        self._operations = [
            (operation, method.upper(), path)
            for path, methods in world.document["paths"].items()
            for method, operation in methods.items()
        ]
        # What a body is made of is most of what can go wrong: such operations get four times as many requests, unless
        # they wait for images, which takes ten times as long as anything else.
        self._weights = [
            4 if "requestBody" in operation and operation["operationId"] not in WAITING else 1
            for operation, _, _ in self._operations
        ]
        self._bodies: dict[str, Callable[[], Any]] = {
            "submit": self._submit,
            "explain": self._submit,
            "edit_images": lambda: self._call(MODELS[0]) | {"images": [{"image_url": world.image_name}]},
            "generate_images": lambda: self._call(MODELS[1]),
            "create_sweep": lambda: {
                "base": self._edit(),
                "axes": self._axes(),
                "dry_run": self._chance.random() < 0.9,
            },
            "extend_sweep": lambda: {"axes": self._axes(), "dry_run": self._chance.random() < 0.9},
            "make_previews": lambda: {"step": 250, "control_images": {"cat.png": world.image_name}},
        }

    def valid(self, operation: dict[str, Any], method: str, path: str) -> HttpRequest:
        """A request that the service takes, as far as its state allows."""
        chance, name = self._chance, operation["operationId"]
        for key, values in self._world.ids.items():
            path = path.replace(f"{{{key}}}", quote(chance.choice(values)))
        path = re.sub(r"{(\w+)}", r"\1", path)
        query, headers = [], [(b"host", HOST)]
        for parameter in operation.get("parameters", ()):
            text = chance.choice(VALUES.get(parameter["name"], ("",))[:2])
            if parameter["in"] == "query" and text and chance.random() < 0.3:
                query.append((parameter["name"], text))
            elif parameter["in"] == "header" and chance.random() < 0.2:
                headers.append((parameter["name"].encode(), text.encode()))
        caller = chance.choices(("red", "green", "operator", "reader", "limited"), (70, 8, 8, 6, 8))[0]
        headers.append((b"x-api-key", self._world.keys[caller].encode()))
        request = HttpRequest(name, method, path, urlencode(query), tuple(headers))
        return self._with_body(request, operation) if "requestBody" in operation else request

    def next(self) -> HttpRequest:
        """A request with none to three changes."""
        [place] = self._chance.choices(self._operations, self._weights)
        request = self.valid(*place)
        for _ in range(self._chance.choice((0, *(1,) * 12, *(2,) * 6, 3, 4))):
            request = self._changed(request)
        if request.body and self._chance.random() < 0.95:
            request = request.with_header(b"content-length", str(len(request.body)).encode())
        return replace(request, parts=self._chance.choice((1, 1, 1, 3)))

    def _with_body(self, request: HttpRequest, operation: dict[str, Any]) -> HttpRequest:
        chance = self._chance
        if request.operation == "upload":
            return self._with_type(replace(request, body=self._image()), "application/octet-stream")
        value = self._bodies.get(request.operation, lambda: self._example(operation))()
        text = json.dumps(value).encode()
        if request.operation in ("submit", "explain") and chance.random() < 0.2:
            text = json.dumps(value).replace(self._world.image_name, "part:photo").encode()
            body = form((("request", text), ("photo", self._image())))
            return self._with_type(replace(request, body=body), f"multipart/form-data; boundary={BOUNDARY}")
        return self._with_type(replace(request, body=text), "application/json")

    def _example(self, operation: dict[str, Any]) -> Any:
        """The body that the document shows, of an operation without a recipe."""
        schema = operation["requestBody"]["content"].get("application/json", {}).get("schema", {})
        name = schema.get("$ref", "").rpartition("/")[2]
        return self._world.document["components"]["schemas"].get(name, schema).get("examples", [{}])[0]

    def _with_type(self, request: HttpRequest, content_type: str) -> HttpRequest:
        return request.with_header(b"content-type", content_type.encode("latin-1", "replace"))

    def _changed(self, request: HttpRequest) -> HttpRequest:
        in_head = (self._path, self._query, self._header, self._header, self._key, self._method)
        in_body = (self._json, self._json, self._json, self._json, self._bytes, self._content_type)
        return self._chance.choice(in_body * 2 + in_head if request.body else in_head)(request)

    def _path(self, request: HttpRequest) -> HttpRequest:
        parts = request.path.split("/")
        at = self._chance.randrange(1, len(parts))
        parts[at] = quote(changed_text(parts[at], self._chance), safe="%", errors="surrogatepass")
        return replace(request, path="/".join(parts)[:4_000])

    def _query(self, request: HttpRequest) -> HttpRequest:
        chance = self._chance
        name = chance.choice([*VALUES, "token", "x"])
        text = chance.choice(VALUES.get(name, ODD_TEXTS)) if chance.random() < 0.6 else chance.choice(ODD_TEXTS)
        added = urlencode([(name, text)], errors="surrogatepass")
        query = f"{request.query}&{added}" if chance.random() < 0.8 else changed_text(request.query, chance)
        return replace(request, query=query)

    def _header(self, request: HttpRequest) -> HttpRequest:
        chance = self._chance
        name = chance.choice([*VALUES, *OTHER_HEADERS, *OTHER_HEADERS])
        text = chance.choice(VALUES.get(name, ODD_TEXTS)) if chance.random() < 0.5 else chance.choice(ODD_TEXTS)
        # A server refuses line breaks and NUL in a header before the application sees it.
        value = text.encode("latin-1", "replace").translate(None, b"\r\n\0")
        return request.with_header(name.encode(), value)

    def _key(self, request: HttpRequest) -> HttpRequest:
        chance = self._chance
        key = chance.choice(["", *self._world.keys.values()])
        value = changed_text(key, chance) if chance.random() < 0.5 else f"Bearer {key}"
        raw = value.encode("latin-1", "replace").translate(None, b"\r\n\0")
        return request.with_header(chance.choice((b"authorization", b"x-api-key")), raw)

    def _method(self, request: HttpRequest) -> HttpRequest:
        return replace(request, method=self._chance.choice(METHODS))

    def _content_type(self, request: HttpRequest) -> HttpRequest:
        chance = self._chance
        text = chance.choice(CONTENT_TYPES) if chance.random() < 0.7 else changed_text(CONTENT_TYPES[0], chance)
        return request.with_header(b"content-type", text.encode("latin-1", "replace").translate(None, b"\r\n\0"))

    def _json(self, request: HttpRequest) -> HttpRequest:
        """A change of the body's value, if it is one that can be read."""
        try:
            value = json.loads(request.body)
        except (ValueError, RecursionError):
            return self._bytes(request)
        text = json.dumps(changed_json(value, self._chance))
        # Characters as they are instead of escaped, where UTF-8 has them.
        raw = self._chance.random() < 0.3
        body = json.dumps(json.loads(text), ensure_ascii=False).encode(errors="surrogatepass") if raw else text.encode()
        return replace(request, body=body[: 2 * MAX_BODY_BYTES])

    def _bytes(self, request: HttpRequest) -> HttpRequest:
        odd = FORM_BYTES if BOUNDARY.encode() in request.body else ODD_BYTES
        return replace(request, body=changed_bytes(request.body, self._chance, odd)[: 2 * MAX_BODY_BYTES])

    def _image(self) -> bytes:
        image = self._world.image
        return changed_bytes(image, self._chance) if self._chance.random() < 0.3 else image

    def _image_name(self) -> str:
        """How a body names an image: mostly one that is stored, so that none has to be decoded."""
        chance = self._chance
        if chance.random() < 0.9:
            upload = chance.choice(self._world.ids["upload_id"])
            return self._world.image_name if chance.random() < 0.7 else f"upload:{upload}"
        text = base64.b64encode(self._image()).decode()
        return chance.choice((text, f"data:image/png;base64,{text}", changed_text(text, chance)))

    def _edit(self) -> dict[str, Any]:
        chance = self._chance
        fields: dict[str, Any] = {
            "trigger_word": "sks",
            "hf_token": TOKEN,
            "profile": chance.choice(("reference", "trainer", "auto")),
            "quality": chance.choice(("exact", "balanced")),
            "output_format": chance.choice(("png", "jpeg", "webp")),
            "exif": "apply",
            "vae_tiling": True,
            "deadline_s": 60,
            "priority": chance.choice(("interactive", "bulk")),
            "webhook_url": "https://hooks.example.com/x",
            "webhook_events": ["succeeded", "image"],
            "preset": "poster",
        }
        return edit(self._image_name(), **{name: fields[name] for name in fields if chance.random() < 0.15})

    def _submit(self) -> dict[str, Any]:
        body, chance = self._edit(), self._chance
        more: dict[str, Any] = {"seed": 7, "neg": "blurry", "guidance_scale": 4.0, "sampler": "flowmatch"}
        more |= {"trigger_word": "x", "size": "input", "ctrl_img_1": self._image_name(), "num_frames": 1}
        body["prompts"][0] |= {name: more[name] for name in more if chance.random() < 0.2}
        body["loras"][0] |= {"network_multiplier": 0.5} if chance.random() < 0.3 else {}
        return body

    def _call(self, model: str) -> dict[str, Any]:
        chance = self._chance
        more: dict[str, Any] = {"n": 2, "seed": 3, "quality": "high", "response_format": "url", "stream": True}
        more |= {"partial_images": 1, "output_format": "png", "user": "me", "background": "auto", "guidance_scale": 1}
        chosen = {name: more[name] for name in more if chance.random() < 0.2}
        return {"model": model, "prompt": "at night", "size": "64x64", "steps": 2, "loras": [{"path": LORA}], **chosen}

    def _axes(self) -> dict[str, Any]:
        chance = self._chance
        axes: dict[str, Any] = {
            "checkpoints": [None, LORA, "job/*", {"training_job": "my_job", "from_step": 1}],
            "multipliers": [0.5, 1.0],
            "prompts": ["a", "b"],
            "seeds": [1, 2, -1],
            "control_images": [self._world.image_name, [self._world.image_name]],
            "profiles": ["reference", "trainer"],
            "qualities": ["exact"],
        }
        return {name: axes[name] for name in axes if chance.random() < 0.3} or {"seeds": [1, 2]}


def form(parts: Sequence[tuple[str, bytes]]) -> bytes:
    """A multipart body. The part `request` is text, all others are files."""
    body = b""
    for name, content in parts:
        file = "" if name == "request" else '; filename="x.png"'
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()
