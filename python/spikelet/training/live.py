"""The report of a run while it trains: a page on this machine that redraws itself.

    server = live.start(folder, port=8000)
    print(server)            # http://127.0.0.1:8000
    server.close()

It answers this machine only. A page elsewhere is seen through `ssh -L 8000:localhost:8000 host`.
Nothing is computed unless a page is open: then the files of the run are read when they have
changed, for at most about a twentieth of the time.
"""

from __future__ import annotations

import errno
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from spikelet.errors import OptionError
from spikelet.report import collect
from spikelet.report.page import make_page, to_json

HOST = "127.0.0.1"
_PORTS_TRIED = 10
_REST = 20
_PAUSE = 0.5
_WATCHED = ("train_log.csv", "layers.csv", "samples.jsonl", "exception.log", "pid", "complete.pth")


def start(folder: Path, port: int = 8000) -> LiveServer:
    """Serves the report of the run in `folder` from a thread of its own.

    Args:
        folder: of the run, `home()/runs/NAME`.
        port: where to listen; when another program has it, the next free one of ten. 0: any.

    Raises:
        OptionError: no such port, or all ten are taken.
    """
    if not 0 <= port <= 65535:
        raise OptionError(f"option `server_port`: {port} is none; ports are 0 to 65535")
    tried = range(port, min(port + _PORTS_TRIED, 65536)) if port else range(1)
    for candidate in tried:
        try:
            return LiveServer(folder, candidate, wanted=port)
        except OSError as error:  # noqa: PERF203
            # EACCES: ports below 1024 belong to the system.
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    raise OptionError(
        f"option `server_port`: ports {tried[0]} to {tried[-1]} are taken by other programs; "
        "give another one, or 0 for any"
    )


class LiveServer:
    """A page that is being served; see `start`."""

    def __init__(self, folder: Path, port: int, *, wanted: int) -> None:
        self._server = _Server((HOST, port), _Handler)
        self._server.source = _Source(folder)
        self.port: int = self._server.server_address[1]
        self._wanted = wanted
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="spikelet-live", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        """The page, to be opened in a browser on this machine."""
        return f"http://{HOST}:{self.port}"

    def __str__(self) -> str:
        moved = self._wanted not in (0, self.port)
        return self.address + (f" (port {self._wanted} is taken)" if moved else "")

    def close(self) -> None:
        """Stops serving; a page that is open keeps what it shows. It can be called twice."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Source:
    """The document of a run, read again when its files have changed and enough time has passed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._document: dict[str, Any] = {}
        self._seen: object = None
        self._next = 0.0

    def document(self) -> dict[str, Any]:
        with self._lock:
            started = time.monotonic()
            if started >= self._next and (seen := self._files()) != self._seen:
                self._document = collect([str(self._folder)], live=True)
                self._seen = seen
                ended = time.monotonic()
                self._next = ended + max(_PAUSE, _REST * (ended - started))
            return self._document

    def _files(self) -> list[tuple[int, int] | None]:
        places = (self._folder, self._folder / "training")
        return [_version(place / name) for place in places for name in _WATCHED]


def _version(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    source: _Source

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no news; a training log is no place for the rest."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        # Another site may give its own name this machine's address; it must not read along.
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        path = self.path.partition("?")[0]
        if host not in (HOST, "localhost"):
            self._answer(403, "text/plain", "this page is for 127.0.0.1 and localhost")
        elif path == "/":
            page = make_page(self.server.source.document(), live=True)
            self._answer(200, "text/html", page)
        elif path == "/data.json":
            self._answer(200, "application/json", to_json(self.server.source.document()))
        else:
            self._answer(404, "text/plain", "there are / and /data.json")

    def _answer(self, status: int, kind: str, text: str) -> None:
        body = text.encode("utf-8")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not written among the lines of training."""
