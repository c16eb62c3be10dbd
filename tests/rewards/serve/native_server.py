"""A small real HTTP server of the native contract that misbehaves as told."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NDJSON = "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as the server saw it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def items(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.body["items"]
        return found


Reply = Callable[["Handler", Asked], None]


def text_of(turns: Any) -> str:
    return turns if isinstance(turns, str) else "\n".join(m["content"] for m in turns)


def reward(item: dict[str, Any]) -> float:
    """The rule of this server: the output's length, less that of the reference; half for what is rendered."""
    if "text" in item:
        return 0.5
    return float(len(text_of(item["output"])) - len(text_of(item["reference"])))


def row(index: int, item: dict[str, Any]) -> dict[str, Any]:
    if item.get("output") == "fail":
        return {"index": index, "id": None, "error": {"code": "item_failed", "message": "too long"}}
    truncated = ["prompt"] if item.get("output") == "cut" else []
    return {"index": index, "id": None, "reward": reward(item), "truncated": truncated, "cached_tokens": 3}


def pair_row(index: int, pair: dict[str, Any]) -> dict[str, Any]:
    if pair["first"] == "fail":
        return {"index": index, "id": None, "error": {"code": "item_failed", "message": "first: too long"}}
    first, second = (float(len(pair[side])) for side in ("first", "second"))
    return {"index": index, "id": None, "probability": first / (first + second), "first": first, "second": second}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: "NativeServer"

    def do_GET(self) -> None:
        self._handle(b"{}")

    def do_POST(self) -> None:
        self._handle(self.rfile.read(int(self.headers["content-length"])))

    def send(self, status: int, body: bytes, content_type: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def open_stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", NDJSON)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def chunk(self, body: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """A test's output is not the place for an access log."""

    def _handle(self, content: bytes) -> None:
        state = self.server_state
        asked = Asked(self.path, {k.lower(): v for k, v in self.headers.items()}, json.loads(content))
        with state.lock:
            state.requests.append(asked)
            state.connections.add(self.client_address)
            reply = state.script.pop(0) if state.script else right
        try:
            reply(self, asked)
        except OSError:
            self.close_connection = True  # the client has gone; tests of deadlines do that


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are what some tests are about."""


class NativeServer:
    """The replies of ``script`` come first, then right ones for ever. ``released`` ends whatever hangs."""

    def __init__(self) -> None:
        self.script: list[Reply] = []
        self.requests: list[Asked] = []
        self.connections: set[Any] = set()
        self.lock = threading.Lock()
        self.released = threading.Event()
        handler = type("BoundHandler", (Handler,), {"server_state": self})
        self._http = Quiet(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self.released.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def right(handler: Handler, asked: Asked) -> None:
    match asked.path:
        case "/v1/score" if NDJSON in asked.headers.get("accept", ""):
            stream([row(i, item) for i, item in enumerate(asked.items)])(handler, asked)
        case "/v1/score":
            rows = [row(i, item) for i, item in enumerate(asked.items)]
            handler.send(200, json.dumps({"model": "tiny", "weight_version": 7, "data": rows}).encode())
        case "/v1/compare":
            rows = [pair_row(i, pair) for i, pair in enumerate(asked.body["pairs"])]
            handler.send(200, json.dumps({"model": "tiny", "weight_version": 7, "data": rows}).encode())
        case "/v1/models":
            handler.send(200, b'{"object": "list", "data": [{"id": "tiny", "weight_version": 6}]}')
        case "/ready":
            handler.send(200, b'{"status": "ready"}')
        case _:
            handler.send(404, b'{"error": {"code": "not_found", "message": "Not Found"}}')


def status(code: int, body: bytes = b"", **headers: str) -> Reply:
    return lambda handler, asked: handler.send(code, body, **headers)


def answer(body: Any, content_type: str = "application/json") -> Reply:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda handler, asked: handler.send(200, content, content_type)


def rows(*given: Any) -> Reply:
    return answer({"model": "tiny", "weight_version": 7, "data": list(given)})


def lines(items: int, *given: Any) -> bytes:
    head = {"model": "tiny", "weight_version": 7, "items": items}
    return b"".join(json.dumps(line).encode() + b"\n" for line in (head, *given))


def stream(given: list[Any]) -> Reply:
    """A whole answer line by line."""

    def reply(handler: Handler, asked: Asked) -> None:
        handler.open_stream()
        for line in lines(len(given), *given).splitlines(keepends=True):
            handler.chunk(line)
        handler.chunk(b"")

    return reply


def cut_stream(whole: int, partial: bytes = b'{"index": ') -> Reply:
    """``whole`` right rows and a piece of the next; then the connection breaks."""

    def reply(handler: Handler, asked: Asked) -> None:
        handler.open_stream()
        handler.chunk(lines(len(asked.items), *(row(i, asked.items[i]) for i in range(whole))) + partial)
        handler.close_connection = True

    return reply


def cut_body(handler: Handler, asked: Asked) -> None:
    """Half of an answer of announced length."""
    handler.send_response(200)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"model": "tiny", "data": [')
    handler.close_connection = True


def hang_up(handler: Handler, asked: Asked) -> None:
    handler.close_connection = True


def hang(handler: Handler, asked: Asked) -> None:
    handler.server_state.released.wait(60)
    handler.close_connection = True


def drip(handler: Handler, asked: Asked) -> None:
    """Every silence is short, and no answer ever comes of it."""
    handler.open_stream()
    while not handler.server_state.released.wait(0.02):
        handler.chunk(b" ")
