"""What tests need of Qdrant: folders made by the official client, and its REST API on loopback.

The server answers from an official client in local mode. What goes over the wire is real, the
engine behind it is not a Qdrant server's: it proves the client's path, not server semantics.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient
from qdrant_client.models import (
    CreateAlias,
    CreateAliasOperation,
    Distance,
    PointStruct,
    VectorParams,
)

from conftest import clean_environment, tree_digest

# ---------------------------------------------------------------------- folders


def make_folder(
    path: Path, payloads: Mapping[Any, Any], *, collection: str = "docs", alias: str = ""
) -> Path:
    """A folder with one more collection, {point id: payload}, made by the official client."""
    with closing(QdrantClient(path=str(path))) as client:
        client.create_collection(collection, VectorParams(size=2, distance=Distance.COSINE))
        points = [
            PointStruct(id=point_id, vector=[0.6, 0.8], payload=payload)
            for point_id, payload in payloads.items()
        ]
        if points:
            client.upsert(collection, points)
        if alias:
            create = CreateAlias(collection_name=collection, alias_name=alias)
            client.update_collection_aliases([CreateAliasOperation(create_alias=create)])
    return path


def storage_of(folder: Path, collection: str = "docs") -> Path:
    """The SQLite file of a collection."""
    return folder / "collection" / collection / "storage.sqlite"


@contextmanager
def untouched(path: Path) -> Iterator[None]:
    """Assert that below `path` no byte, no modification time and no name is another afterwards."""

    def state() -> tuple[dict[str, str], dict[str, int]]:
        there = [path, *path.rglob("*")] if path.exists() else []
        return tree_digest(path), {str(entry): entry.stat().st_mtime_ns for entry in there}

    before = state()
    yield
    assert state() == before


@contextmanager
def other_process(code: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """Python `code` in a process of its own, from its first printed line on; killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), "it ended before it was ready"
            yield process
        finally:
            process.kill()


# ---------------------------------------------------------------------- server


class QdrantServer(ThreadingHTTPServer):
    """Qdrant's REST API over `client`, as far as this toolkit uses it.

    `fail(method, path)` may return (status, message) to answer instead; `requests` keeps
    (method, path, body) of everything that came, `headers_seen` their headers.
    """

    daemon_threads = True

    def __init__(self, client: QdrantClient):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.client = client
        self.version = version("qdrant-client")
        self.fail: Callable[[str, str], tuple[int, str] | None] = lambda method, path: None
        self.requests: list[tuple[str, str, dict[str, Any]]] = []
        self.headers_seen: list[dict[str, str]] = []
        self.lock = threading.Lock()  # a local-mode client is not made for several threads

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, method: str, path: str, body: dict[str, Any]) -> Any:
        """The `result` of a request; LookupError for what is not there."""
        client = self.client
        match method, path.strip("/").split("/"):
            case "GET", ["collections"]:
                return client.get_collections()
            case "GET", ["aliases"]:
                return client.get_aliases()
            case "GET", ["collections", name, "exists"]:
                return {"exists": client.collection_exists(name)}
            case _, ["collections", name, *_] if not client.collection_exists(name):
                raise LookupError(f"Not found: Collection `{name}` doesn't exist!")
            case "POST", ["collections", name, "points", "count"]:
                return client.count(name)
            case "POST", ["collections", name, "points", "scroll"]:
                points, offset = client.scroll(name, **_asked(body, "limit", "offset"))
                return {"points": _plain(points), "next_page_offset": offset}
            case "POST", ["collections", name, "points"]:
                return client.retrieve(name, **_asked(body, "ids"))
            case "POST", ["collections", name, "points", "payload"]:
                return client.set_payload(name, body["payload"], points=body["points"])
        raise LookupError(f"no such path: {method} {path}")


def _asked(body: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The request's arguments as the client's methods call them."""
    return {
        **{key: body[key] for key in keys if body.get(key) is not None},
        "with_payload": body.get("with_payload", True),
        "with_vectors": body.get("with_vector", False),
    }


def _plain(result: Any) -> Any:
    if isinstance(result, list):
        return [_plain(item) for item in result]
    return result.model_dump(mode="json") if hasattr(result, "model_dump") else result


class _Handler(BaseHTTPRequestHandler):
    server: QdrantServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def _serve(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        path = self.path.split("?")[0]
        with self.server.lock:
            self.server.requests.append((self.command, path, body))
            self.server.headers_seen.append(dict(self.headers))
            if path == "/":  # the client asks whether the server is as old as itself
                self._send(200, {"title": "facade", "version": self.server.version})
                return
            if failure := self.server.fail(self.command, path):
                self._send(failure[0], {"status": {"error": failure[1]}, "time": 0.0})
                return
            try:
                result = _plain(self.server.answer(self.command, path, body))
            except LookupError as error:
                self._send(404, {"status": {"error": error.args[0]}, "time": 0.0})
            else:
                self._send(200, {"result": result, "status": "ok", "time": 0.0})

    do_GET = do_POST = do_PUT = _serve

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving(folder: Path) -> Iterator[QdrantServer]:
    """A server on loopback that answers from `folder`, which it holds locked meanwhile."""
    client = QdrantClient(path=str(folder), force_disable_check_same_thread=True)
    with closing(client), QdrantServer(client) as server:
        # It looks this often (seconds) whether it shall stop; the default costs each test 0.5 s.
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
