"""A report that follows a running search: the same page, and a JSON endpoint that it asks for news.

Python's own HTTP server is enough for one reader on this machine. It listens on 127.0.0.1 only, answers GET only,
and refuses a request whose Host header names another machine, so that no web page can reach it by rebinding a name.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from llmnas.errors import UserError
from llmnas.pareto import Evaluation
from llmnas.report.findings import Findings, described, packed
from llmnas.report.html import render

_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "frame-ancestors 'none'",
}
_ASKED = {"after": "0", "last": "", "seen": ""}


class ReportServer(ThreadingHTTPServer):
    """Serves `/` (the page) and `/data?after=N&last=ID&seen=HASH`, the news: see `news`.

    Args:
        findings: called for every answer; what the report shows at that moment, the same object while nothing changed.
        port: to listen on; 0 takes a free one.

    Raises:
        UserError: the port is taken or not allowed.
    """

    daemon_threads = True

    def __init__(self, findings: Callable[[], Findings], port: int) -> None:
        self.findings = findings
        self._lock = threading.Lock()
        self._digested: tuple[Findings, dict[str, Any], str] | None = None
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"--port {port}: cannot listen there ({error}); choose another, or 0 for a free one"
            ) from None

    def digest(self, findings: Findings) -> tuple[dict[str, Any], str]:
        """Everything but the evaluations, and a hash that changes when it does; worked out once for each findings."""
        with self._lock:
            if self._digested is None or self._digested[0] is not findings:
                rest = described(findings)
                text = json.dumps(rest, allow_nan=False)
                self._digested = findings, rest, hashlib.sha256(text.encode()).hexdigest()[:16]
            return self._digested[1:]

    @property
    def address(self) -> str:
        """What to type into a browser."""
        return f"http://127.0.0.1:{self.server_port}/"

    @property
    def hosts(self) -> set[str]:
        """The Host headers of requests that mean this server."""
        return {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}


def news(evaluations: Sequence[Evaluation], after: int, last: str) -> dict[str, Any]:
    """The evaluations that a page lacks which knows the first `after` of them.

    `last` is the architecture of the last one it knows. Where that is another one here, a new search took the old
    one's place, and the page gets all of it.
    """
    same = 0 < after <= len(evaluations) and evaluations[after - 1].arch.id == last
    return packed(evaluations, after if same else 0)


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "llmnas", ""

    def do_GET(self) -> None:
        server = cast(ReportServer, self.server)
        url = urlsplit(self.path)
        try:
            if self.headers.get("Host") not in server.hosts:
                self._answer(HTTPStatus.FORBIDDEN, {"error": "this server answers to 127.0.0.1 only"})
            elif url.path == "/":
                self._send(HTTPStatus.OK, "text/html; charset=utf-8", render(server.findings(), live=True))
            elif url.path == "/data":
                self._data(server, parse_qs(url.query))
            else:
                self._answer(HTTPStatus.NOT_FOUND, {"error": "no such page; there are / and /data"})
        except UserError as error:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)})
        except ConnectionError:  # the reader left; there is nobody to tell
            self.close_connection = True

    def _data(self, server: ReportServer, asked: dict[str, list[str]]) -> None:
        after, last, seen = (asked.get(name, [default])[0] for name, default in _ASKED.items())
        if not (after.isascii() and after.isdigit() and len(after) < 10):
            self._answer(HTTPStatus.BAD_REQUEST, {"error": f"after={after!r} is not a number of evaluations"})
            return
        findings = server.findings()
        rest, digest = server.digest(findings)
        new = news(findings.evaluations, int(after), last)
        self._answer(HTTPStatus.OK, {"seen": digest, "described": None if digest == seen else rest, "evaluations": new})

    def _answer(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(value, allow_nan=False, separators=(",", ":")))

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a page that asks every second would fill the terminal."""
