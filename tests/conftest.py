"""Fixtures: the real sample, scripts run as a person runs them, real servers on loopback."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from question_optimizer import rehearsal

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "sample"
COLLECTION = "sqlite_docs"

sys.path.insert(0, str(ROOT))


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without any setting or key of ours."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("QO_") and not name.endswith("_API_KEY")
    }
    return {**kept, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1", **extra}


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("QO_") or n.endswith("_API_KEY")]:
        monkeypatch.delenv(name)


@pytest.fixture
def qdrant(tmp_path: Path) -> Path:
    """A private copy of the sample's Qdrant folder."""
    return Path(shutil.copytree(SAMPLE / "small_sqlite", tmp_path / "qdrant"))


Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Run a phase script in a process of its own, in an empty folder, and return what it did."""

    def run(name: str, *args: object, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / name), *map(str, args)],
            cwd=tmp_path,
            env=clean_environment(**environ),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def tree_digest(folder: Path) -> dict[str, str]:
    """{relative path: sha256} of every file below `folder`."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---------------------------------------------------------------------- LLM servers


class LLMServer(ThreadingHTTPServer):
    """Speaks OpenAI's chat completions and Anthropic's messages on loopback.

    Answers come from `reply(messages)`. `fail`, if set, may return (status, headers, body) for the
    n-th request instead. `requests` keeps (path, headers, body) of everything that came.
    """

    daemon_threads = True

    def __init__(self, reply: Callable[[list[dict[str, Any]]], str] = rehearsal.answer):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply = reply
        self.fail: Callable[[int], tuple[int, dict[str, str], str] | None] = lambda n: None
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: LLMServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: 40 ms a request otherwise

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), body))
            number = len(self.server.requests)
        if failure := self.server.fail(number):
            status, headers, text = failure
            self._send(status, text.encode(), headers)
        elif self.path.endswith("/chat/completions"):
            text = self.server.reply(body["messages"])
            self._send(200, json.dumps(rehearsal.completion(body, text)).encode())
        elif self.path.endswith("/v1/messages"):
            system = [{"role": "system", "content": body["system"]}] if "system" in body else []
            text = self.server.reply([*system, *body["messages"]])
            self._send(200, json.dumps(_anthropic_message(body, text)).encode())
        else:
            self._send(404, b'{"error": {"message": "no such path"}}')

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        with contextlib.suppress(ConnectionError):  # the client may be killed meanwhile
            self.end_headers()
            self.wfile.write(body)


def _anthropic_message(body: dict[str, Any], text: str) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": max(1, len(text) // 4)},
    }


@pytest.fixture
def llm_server() -> Iterator[Callable[..., LLMServer]]:
    """Starts LLM servers; each is stopped when the test ends."""
    started: list[LLMServer] = []

    def start(reply: Callable[[list[dict[str, Any]]], str] = rehearsal.answer) -> LLMServer:
        server = LLMServer(reply)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()
