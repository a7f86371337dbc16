"""A stand-in for Serve's proxy with the application behind it: it answers in Serve's ways and says what it got."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answers(BaseHTTPRequestHandler):
    """`/echo` gives back the headers, `/plain/<status>` is Serve's plain text, `/json/<status>` the application's."""

    protocol_version = "HTTP/1.1"
    deployed = True
    # Paths of all requests so far.
    asked: set[str]

    def do_GET(self) -> None:
        self.asked.add(self.path)
        if not self.deployed:
            self._answer(404, "text/plain; charset=utf-8", "Path not found. Ping http://.../-/routes")
        elif self.path.startswith("/plain/"):
            self._answer(int(self.path.rpartition("/")[2]), "text/plain; charset=utf-8", "what Serve says")
        elif self.path.startswith("/json/"):
            self._answer(int(self.path.rpartition("/")[2]), "application/json", '{"detail": "ours"}')
        elif self.path == "/events":
            self._stream()
        else:
            time.sleep({"/slow": 1, "/slower": 4}.get(self.path, 0))
            self._answer(
                200, "application/json", json.dumps({name.lower(): value for name, value in self.headers.items()})
            )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.deployed:
            self._answer(404, "text/plain; charset=utf-8", "Path not found. Ping http://.../-/routes")
            return
        time.sleep(3 if self.path.endswith("/slow") else 0)
        self._answer(200, "application/json", json.dumps({"bytes": len(body)}))

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for i in range(3):
            self.wfile.write(f"data: {i}\n\n".encode())
            self.wfile.flush()
            time.sleep(0.3)
        self.close_connection = True

    def _answer(self, status: int, content_type: str, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


class Backend(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A front that ends breaks its connections."""


@contextmanager
def backend(port: int = 0) -> Iterator[tuple[int, type[Answers]]]:
    """Its port, and the class whose `deployed` says whether there is a route."""
    answers = type("TheseAnswers", (Answers,), {"asked": set()})
    with Backend(("127.0.0.1", port), answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_port, answers
        finally:
            server.shutdown()
            thread.join()
