"""A real S3 server on loopback that can be told to fail, as object stores do."""

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

Kind = Literal["unavailable", "error", "reset", "truncate", "corrupt"]
_SAID = {"unavailable": ("503 Slow Down", "SlowDown"), "error": ("500 Error", "InternalError")}


class FaultyS3:
    """Serves until stopped; ``fail`` arms faults for the requests that follow."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._kind: Kind | None = None
        self._left = 0
        self._until = 0.0
        self._matching = ""
        self.failed = 0
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=MotoRequestHandler
        )
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._thread.join()

    def fail(
        self, kind: Kind | None, times: int = 0, seconds: float = 0.0, matching: str = ""
    ) -> None:
        """Fail the next ``times`` requests, or all for ``seconds``, whose path holds ``matching``.

        truncate and corrupt spoil what is read. None ends a fault.
        """
        with self._lock:
            self._kind, self._left, self._matching = kind, times, matching
            self._until = time.monotonic() + seconds
            self.failed = 0

    def _fault(self, environ: dict[str, Any]) -> Kind | None:
        with self._lock:
            if self._kind is None or self._matching not in environ["PATH_INFO"]:
                return None
            if self._kind in ("truncate", "corrupt") and environ["REQUEST_METHOD"] != "GET":
                return None
            if self._left > 0:
                self._left -= 1
            elif time.monotonic() >= self._until:
                return None
            self.failed += 1
            return self._kind

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
