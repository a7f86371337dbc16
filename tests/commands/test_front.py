"""The front with a stand-in for Serve behind it: what reaches the application, and what clients are answered."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import httpx
import psutil
import pytest

from serve_app.commands import haproxy
from serve_app.commands.front import Front
from serve_app.commands.haproxy import MAX_HEAD_BYTES, FrontSettings, cors_rules, quoted
from serve_app.commands.ports import listen
from serve_app.config import FrontConfig
from serve_app.intake.openai.calls import MAX_WAIT_S
from tests.commands.backend import Answers, backend

DEFAULTS = FrontConfig()


@dataclass
class Running:
    front: Front
    port: int
    client: httpx.Client
    answers: type[Answers]

    def raw(self, data: bytes, source: str = "127.0.0.1", timeout: float = 15) -> bytes:
        """What the front answers to these bytes on a connection of their own."""
        with socket.create_connection(("127.0.0.1", self.port), timeout, source_address=(source, 0)) as connection:
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(data)
            try:
                return connection.recv(4096)
            except ConnectionResetError:
                return b""


@contextmanager
def running(
    limits: FrontConfig = DEFAULTS, cors_origins: tuple[str, ...] = ("*",), base_path: str = ""
) -> Iterator[Running]:
    with ExitStack() as stack:
        port, answers = stack.enter_context(backend())
        listener = stack.enter_context(listen("127.0.0.1", 0))
        address = listener.getsockname()[1]
        front = stack.enter_context(Front(FrontSettings(limits, cors_origins, base_path, port), listener))
        client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{address}", timeout=15))
        yield Running(front, address, client, answers)


@pytest.fixture(scope="module")
def front() -> Iterator[Running]:
    with running() as one:
        yield one


def until(is_so: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def code_of(response: httpx.Response) -> str:
    """The code of an error of the front, which reads the same in the contract's shape and in OpenAI's."""
    contract, openai = response.json()["detail"]["error"], response.json()["error"]
    assert set(openai) == {"message", "type", "param", "code"}
    assert (contract["code"], contract["message"]) == (openai["code"], openai["message"])
    return contract["code"]


def test_a_request_passes_with_the_clients_host_and_address(front: Running):
    seen = front.client.get("/echo", headers={"Host": "edits.example", "X-Custom": "1"}).json()
    assert (seen["host"], seen["x-custom"], seen["x-forwarded-for"]) == ("edits.example", "1", "127.0.0.1")


@pytest.mark.parametrize(
    "name",
    [
        "x-request-timeout-seconds",
        "X-Request-Timeout_Seconds",
        "x-request-disconnect-disabled",
        "X-Session-Id",
        "x_session_id",
        "serve_multiplexed_model_id",
        "Serve-Multiplexed-Model-Id",
    ],
)
def test_headers_that_serve_obeys_do_not_pass(front: Running, name: str):
    assert name.lower() not in front.client.get("/echo", headers={name: "1"}).json()


def test_only_a_trusted_proxy_names_the_client():
    headers_sent = {"X-Forwarded-For": "1.2.3.4, 203.0.113.9", "X-Forwarded-Proto": "https"}
    with running() as front:
        seen = front.client.get("/echo", headers=headers_sent).json()
        assert (seen["x-forwarded-for"], seen["x-forwarded-proto"]) == ("203.0.113.9", "https")
    with running(FrontConfig(trusted_proxies=())) as front:
        seen = front.client.get("/echo", headers=headers_sent).json()
        assert seen["x-forwarded-for"] == "127.0.0.1"
        assert "x-forwarded-proto" not in seen


@pytest.mark.parametrize(("status", "answered"), [(404, 503), (500, 503), (503, 503), (408, 504)])
def test_serves_own_errors_have_the_contracts_shape(front: Running, status: int, answered: int):
    response = front.client.get(f"/plain/{status}")
    assert response.status_code == answered
    assert code_of(response) == ("NO_ANSWER" if answered == 504 else "SERVICE_UNAVAILABLE")
    assert response.headers["access-control-allow-origin"] == "*"
    assert answered == 504 or response.headers["retry-after"] == "2"


@pytest.mark.parametrize("status", [200, 404, 429, 500, 503])
def test_the_applications_answers_pass_as_they_are(front: Running, status: int):
    response = front.client.get(f"/json/{status}")
    assert (response.status_code, response.json()) == (status, {"detail": "ours"})


def test_events_pass_one_by_one(front: Running):
    with front.client.stream("GET", "/events", headers={"Accept": "text/event-stream"}) as response:
        arrivals = [(line, time.monotonic()) for line in response.iter_lines() if line]
    assert [line for line, _ in arrivals] == ["data: 0", "data: 1", "data: 2"]
    assert arrivals[2][1] - arrivals[0][1] > 0.4


def test_a_large_body_passes(front: Running):
    assert front.client.post("/v1/inference", content=b"x" * 30_000_000).json() == {"bytes": 30_000_000}


@pytest.mark.parametrize("size", [MAX_HEAD_BYTES + 2000, 1_000_000])
def test_large_headers_are_431(front: Running, size: int):
    head, _, body = front.raw(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * size + b"\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert b"access-control-allow-origin: *" in head
    assert json.loads(body)["detail"]["error"]["code"] == "HEADERS_TOO_LARGE"


def test_calls_of_openais_images_api_may_take_another_time(monkeypatch):
    assert haproxy.OPENAI_TIMEOUT_S > MAX_WAIT_S
    monkeypatch.setattr(haproxy, "OPENAI_TIMEOUT_S", 1)
    with running() as front:
        cut = front.client.post("/v1/images/slow", json={})
        assert (cut.status_code, code_of(cut)) == (504, "NO_ANSWER")
        assert front.client.post("/v1/inference/slow", json={}).status_code == 200


def test_endless_headers_take_no_memory(front: Running):
    [haproxy] = [child for child in psutil.Process().children() if "haproxy" in child.name()]
    before = haproxy.memory_info().rss
    for _ in range(4):
        front.raw(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000_000 + b"\r\n\r\n")
    assert haproxy.memory_info().rss - before < 10_000_000
    assert front.client.get("/health").status_code == 200


def test_a_head_of_16_kb_passes(front: Running):
    assert len(front.client.get("/echo", headers={"Cookie": "c" * 16_000}).json()["cookie"]) == 16_000


def test_slow_requests_are_cut_off_before_they_reach_the_application(front: Running):
    """A head and a body of which a byte comes now and then; both at the same time, for each takes ten seconds."""

    def drip(beginning: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", front.port), 20) as connection:
            connection.sendall(beginning)
            connection.settimeout(1)
            for _ in range(15):
                try:
                    return connection.recv(4096)
                except TimeoutError:
                    connection.sendall(b"a")
        return b""

    async def both() -> list[bytes]:
        head = b"GET /health HTTP/1.1\r\nHost: a\r\nX: "
        body = b"POST /v1/inference HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
        return await asyncio.gather(asyncio.to_thread(drip, head), asyncio.to_thread(drip, body))

    for answer in asyncio.run(both()):
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b"REQUEST_TIMEOUT" in answer


def test_requests_of_an_address_are_limited_and_health_is_not():
    with running(FrontConfig(max_requests_per_address=5)) as front:

        def ask(path: str) -> int:
            return httpx.get(f"http://127.0.0.1:{front.port}{path}", timeout=15).status_code

        answers: list[int] = []
        threads = [threading.Thread(target=lambda: answers.append(ask("/slower"))) for _ in range(12)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        assert ask("/health") == 200
        other = front.raw(b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", source="127.0.0.2")
        assert other.startswith(b"HTTP/1.1 200")
        for thread in threads:
            thread.join()
        assert sorted(answers) == [200] * 5 + [429] * 7
        until(lambda: ask("/echo") == 200)


def test_silent_connections_leave_room_for_others():
    limits = FrontConfig(max_connections=100, max_requests_per_address=20, trusted_proxies=())
    with running(limits) as front, ExitStack() as stack:
        for _ in range(150):
            stack.enter_context(socket.create_connection(("127.0.0.1", front.port), source_address=("127.0.0.66", 0)))
        started = time.monotonic()
        assert front.client.get("/health").status_code == 200
        assert time.monotonic() - started < 2


def test_every_path_is_503_until_the_application_answers():
    with running() as front:
        front.answers.deployed = False
        assert {front.client.get(f"/v1/requests/{i}/status").status_code for i in range(20)} == {503}
        until(lambda: front.client.get("/v1/models", headers={"Origin": "http://a"}).status_code == 503)
        response = front.client.post("/v1/inference", json={})
        assert (code_of(response), response.headers["retry-after"]) == ("SERVICE_UNAVAILABLE", "2")
        front.answers.deployed = True
        until(lambda: front.client.get("/echo").status_code == 200)


def test_closed_front_answers_503_that_browsers_can_read():
    with running() as front:
        front.front.close()
        response = front.client.get("/v1/requests/x/status", headers={"Origin": "http://a"})
        assert (response.status_code, code_of(response)) == (503, "SERVICE_UNAVAILABLE")
        assert response.headers["access-control-allow-origin"] == "*"
        assert front.client.get("/health").status_code == 503
        asked = {"Origin": "http://a", "Access-Control-Request-Method": "POST"}
        asked |= {"Access-Control-Request-Headers": "authorization"}
        preflight = front.client.options("/v1/inference", headers=asked)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-headers"] == "authorization"
        assert preflight.headers["access-control-allow-methods"] == "POST"
        stream = front.client.get("/v1/requests/x/events", headers={"Accept": "text/event-stream"})
        assert (stream.status_code, stream.headers["content-type"]) == (200, "text/event-stream")
        assert stream.text == "retry: 2000\n\n"


def test_close_lets_a_request_in_progress_finish_and_cut_does_not():
    with running() as front:
        answers: list[int] = []

        def ask() -> None:
            try:
                answers.append(front.client.get("/slow").status_code)
            except httpx.RemoteProtocolError:
                answers.append(0)

        for cut in (False, True):
            thread = threading.Thread(target=ask)
            thread.start()
            time.sleep(0.3)
            if cut:
                front.front.cut()
            front.front.close()
            thread.join()
            front.front._send("set server probes/serve state ready")
            until(lambda: front.client.get("/echo").status_code == 200)
        assert answers[0] == 200
        assert answers[1] != 200


def test_haproxy_that_died_is_started_again():
    with running() as front:
        [haproxy] = haproxies(front.port)
        haproxy.kill()
        haproxy.wait()
        with pytest.raises(httpx.ReadTimeout):
            front.client.get("/echo", timeout=0.5)
        front.front.keep_running()
        until(lambda: front.client.get("/echo").status_code == 200)
        [another] = haproxies(front.port)
        assert another.pid != haproxy.pid


def haproxies(port: int) -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.net_connections() and _listens(child, port)]


def _listens(process: psutil.Process, port: int) -> bool:
    return any(each.status == "LISTEN" and each.laddr.port == port for each in process.net_connections())


def test_named_origins_may_read_and_no_other():
    with running(cors_origins=("https://it's.example", "https://b.example")) as front:
        front.front.close()
        for origin in ("https://it's.example", "https://b.example"):
            response = front.client.get("/echo", headers={"Origin": origin})
            assert response.headers["access-control-allow-origin"] == origin
        other = front.client.get("/echo", headers={"Origin": "https://c.example"})
        assert "access-control-allow-origin" not in other.headers
    assert cors_rules(()) == []


def test_health_below_a_prefix():
    with running(base_path="/edits") as front:
        until(lambda: front.client.get("/edits/echo").status_code == 200)
        # HAProxy lets requests pass once the application's health is good, which it asks for below the prefix.
        assert front.answers.asked >= {"/edits/health"}
        assert "/health" not in front.answers.asked


def test_quoted_words_are_one_word():
    assert quoted("it's $HOME") == "'it'\\''s $HOME'"
