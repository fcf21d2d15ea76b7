"""A real S3 server on this machine that can be told to fail, as object stores do."""

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

Kind = Literal["unavailable", "error", "reset", "truncate", "corrupt"]
_SAID = {"unavailable": ("503 Slow Down", "SlowDown"), "error": ("500 Error", "InternalError")}


@dataclass
class Fault:
    """Fails ``times`` requests, or all for ``seconds``, after letting ``after`` others through.

    truncate and corrupt spoil what is read. matching: only requests whose path holds it.
    """

    kind: Kind
    times: int = 0
    seconds: float = 0.0
    after: int = 0
    matching: str = ""
    failed: int = 0
    _until: float | None = None

    def strikes(self, method: str, path: str) -> bool:
        """Whether this request fails."""
        if self.matching not in path or (self.kind in _OF_READS and method != "GET"):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        if self._until is None:
            self._until = time.monotonic() + self.seconds
        if self.failed >= self.times and time.monotonic() >= self._until:
            return False
        self.failed += 1
        return True


_OF_READS = ("truncate", "corrupt")


class _QuietHandler(MotoRequestHandler):
    def log(self, *_: Any) -> None:
        """No line a request."""


class FaultyS3:
    """Serves until stopped; ``faults`` are what goes wrong with the requests that follow."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self.requests = 0
        self._server = make_server(
            address, 0, self._answer, threaded=True, request_handler=_QuietHandler
        )
        self.endpoint = f"http://{address}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._thread.join()

    @property
    def environment(self) -> dict[str, str]:
        """What a client finds the server by."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def suffer(self, *faults: Fault) -> None:
        """These faults from now on, in place of those before."""
        with self._lock:
            self._faults = list(faults)

    def _fault(self, environ: dict[str, Any]) -> Kind | None:
        with self._lock:
            self.requests += 1
            for fault in self._faults:
                if fault.strikes(environ["REQUEST_METHOD"], environ["PATH_INFO"]):
                    return fault.kind
            return None

    def _answer(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        kind = self._fault(environ)
        if kind in _SAID:
            status, code = _SAID[kind]
            body = f"<Error><Code>{code}</Code><Message>told to</Message></Error>".encode()
            start_response(status, [("Content-Length", str(len(body)))])
            return [body]
        if kind == "reset":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            start_response("500 Reset", [])  # to nobody
            return []
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer if kind is None else self._spoiled(answer, kind)

    @staticmethod
    def _spoiled(answer: Iterable[bytes], kind: Kind) -> Iterator[bytes]:
        """Half of the body, or a body with one byte changed; the headers promise all of it."""
        body = b"".join(answer)
        half = len(body) // 2
        if kind == "truncate":
            yield body[:half]
        else:
            yield body[:half] + bytes([body[half] ^ 1]) + body[half + 1 :] if body else b""
