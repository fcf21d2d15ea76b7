"""A server that W&B's client takes for W&B: it keeps what it is sent, and can go away."""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer:
    """histories: rows by the id of their run, in the order they came. calls: of GraphQL."""

    def __init__(self) -> None:
        self.histories: dict[str, list[dict[str, Any]]] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._away = threading.Event()
        self._stopped = threading.Event()
        handler = type("Handler", (_Handler,), {"server_of": self})
        self._http = _Http(("127.0.0.1", 0), handler)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What makes a client find it."""
        url = f"http://127.0.0.1:{self._http.server_port}"
        return {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40}

    def go_away(self) -> None:
        """Take connections and requests from now on, and answer none."""
        self._away.set()

    def stop(self) -> None:
        """End the server, and whoever waits for it."""
        self._stopped.set()
        self._http.shutdown()
        self._http.server_close()

    def answer(self, path: str, body: bytes) -> Any:
        """The answer to a request; None where there is none to come."""
        if self._away.is_set():
            self._stopped.wait()
            return None
        if path == "/graphql":
            return self._graphql(json.loads(body))
        if path.endswith("/file_stream"):
            history = json.loads(body).get("files", {}).get("wandb-history.jsonl", {})
            rows = self.histories.setdefault(path.split("/")[-2], [])
            rows += [json.loads(line) for line in history.get("content", [])]
        return {}

    def _graphql(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = asked["query"].split("(")[0].split("{")[0].split()[1]
        given = asked.get("variables") or {}
        self.calls.append((name, given))
        entity = {"id": "e", "name": "me"}
        bucket = {
            "id": "b",
            "name": given.get("name"),
            "displayName": given.get("name"),
            "historyLineCount": len(self.histories.get(str(given.get("name")), [])),
            "project": {"id": "p", "name": given.get("project"), "entity": entity},
        }
        files = [{"name": file, "uploadUrl": self._upload_url} for file in given.get("files", [])]
        # COMMITTED: its content is there already, nothing is to be uploaded.
        artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
        answers: dict[str, Any] = {
            "UpsertBucket": {"upsertBucket": {"bucket": bucket, "inserted": True}},
            "Viewer": {"viewer": {"id": "v", "entity": "me", "username": "me"}},
            "CreateRunFiles": {
                "createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}
            },
            "ArtifactType": {"project": {"artifact": None}},
            "CreateArtifact": {"createArtifact": {"artifact": artifact}},
        }
        return {"data": answers.get(name, {})}

    @property
    def _upload_url(self) -> str:
        return f"{self.environment['WANDB_BASE_URL']}/file"


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is not worth a word."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: WandbServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer = self.server_of.answer(self.path, body)
        if answer is None:
            self.close_connection = True
            return
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
