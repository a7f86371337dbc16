"""A web server of one LoRA file, with ranges and versions as they should be, and with bad days."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ssl import SSLContext

RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class LoraServer:
    """What the server has and does; may be changed at any time. `url` is the file's.

    After the first response it is as `later` says, by field. A response breaks off after `breaks_off_after` bytes of
    its body, `times_broken_off` times, and falls silent after `silent_after` bytes until `end` is set; before each
    4096 bytes it waits `pause_s`. `requests` are the paths, ranges and tokens that were asked for, `sent` the bytes of
    bodies that went out. With a `location` every answer is a redirect there.
    """

    content: bytes = b""
    etag: str | None = '"1"'
    later: dict[str, object] = field(default_factory=dict)
    last_modified: str | None = None
    status: int = 200
    knows_ranges: bool = True
    says_length: bool = True
    says_version_of_parts: bool = True
    breaks_off_after: int | None = None
    times_broken_off: int = 1_000_000
    silent_after: int | None = None
    location: str | None = None
    pause_s: float = 0.0
    url: str = ""
    sent: int = 0
    requests: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    end: threading.Event = field(default_factory=threading.Event)

    @property
    def ranges(self) -> list[str | None]:
        return [asked for _, asked, _ in self.requests]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    mood: LoraServer

    def do_GET(self) -> None:
        mood, asked = self.mood, self.headers.get("Range")
        mood.requests.append((self.path, asked, self.headers.get("Authorization")))
        if mood.location is not None:
            self.send_response(302)
            self.send_header("Location", mood.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content, version = mood.content, mood.etag or mood.last_modified
        place = RANGE.match(asked or "") if mood.knows_ranges else None
        if place and self.headers.get("If-Range") not in (None, version):
            place = None
        start = int(place[1]) if place else 0
        end = min(int(place[2]) + 1, len(content)) if place and place[2] else len(content)
        status = mood.status
        if status == 200 and place:
            status = 206 if start < len(content) else 416
        body = content[start:end] if status in (200, 206) else b""
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        if status == 416:
            self.send_header("Content-Range", f"bytes */{len(content)}")
        for name, value in (("ETag", mood.etag), ("Last-Modified", mood.last_modified)):
            if value and (status == 200 or mood.says_version_of_parts):
                self.send_header(name, value)
        if mood.says_length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        self._send(body)
        vars(mood).update(mood.later)
        self.close_connection = self.close_connection or not mood.says_length

    def _send(self, body: bytes) -> None:
        mood = self.mood
        for start in range(0, len(body), 4096):
            piece = body[start : start + 4096]
            mood.end.wait(mood.pause_s)
            if mood.silent_after is not None and start >= mood.silent_after:
                mood.end.wait(30)
            if mood.breaks_off_after is not None and mood.times_broken_off and start >= mood.breaks_off_after:
                mood.times_broken_off -= 1
                self.close_connection = True
                return
            try:
                self.wfile.write(piece)
            except OSError:
                self.close_connection = True
                return
            mood.sent += len(piece)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def lora_server(content: bytes, tls: SSLContext | None = None) -> Iterator[LoraServer]:
    mood = LoraServer(content)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnHandler", (Handler,), {"mood": mood}))
    server.daemon_threads = True
    if tls is not None:
        # The handshake is the handler's thread's: one that fails must not end the server.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    mood.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_address[1]}/a.safetensors"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield mood
    mood.end.set()
    server.shutdown()
    server.server_close()
    thread.join()
