"""An OpenAI-compatible server with one canned answer, on loopback."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class FakeOpenAi:
    """Serves while the `with` block lasts; keeps each request's path and body."""

    def __init__(self, texts: tuple[str, ...] = ("Hel", "lo"), status: int = 200) -> None:
        self.texts = texts
        self.status = status
        self.requests: list[tuple[str, dict[str, Any]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.requests.append((self.path, body))
                self.send_response(outer.status)
                self.send_header("content-type", "text/event-stream")
                self.send_header("connection", "close")
                self.end_headers()
                if outer.status == 200:
                    for event in outer._events(self.path):
                        self.wfile.write(f"data: {event}\n\n".encode())
                        self.wfile.flush()

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _events(self, path: str) -> list[str]:
        is_chat = path.endswith("chat/completions")
        choices = [[{"delta": {"content": text}} if is_chat else {"text": text}] for text in self.texts]
        usage = {"prompt_tokens": 3, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1}}
        role = [{"delta": {"role": "assistant", "content": ""}}] if is_chat else [{"text": ""}]
        events: list[dict[str, Any]] = [{"choices": c} for c in (role, *choices)]
        return [*map(json.dumps, [*events, {"choices": [], "usage": usage}]), "[DONE]"]
