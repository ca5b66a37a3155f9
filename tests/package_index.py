"""A package index on this machine: tiny real wheels, served as the simple repository API wants them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import zipfile
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

ANY = "py3-none-any"


class PackageIndex:
    """A context manager; while it is open, `url` answers. `asked` lists the pages that were asked for."""

    def __init__(self, *, json_api: bool = True) -> None:
        self._json = json_api
        self._pages: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._wheels: dict[str, bytes] = {}
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """The address of the index."""
        return f"http://127.0.0.1:{self._server.server_port}/simple"

    def __enter__(self) -> PackageIndex:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(
        self, name: str, version: str, *, requires: tuple[str, ...] = (), date: str | None = None, tag: str = ANY
    ) -> None:
        """Add a wheel. `date` is when it came out, such as `2023-05-01`."""
        wheel = _wheel(name, version, requires, tag)
        file = f"{name.replace('-', '_')}-{version}-{tag}.whl"
        self._wheels[file] = wheel
        digest = hashlib.sha256(wheel).hexdigest()
        entry: dict[str, Any] = {"filename": file, "url": f"/files/{file}", "hashes": {"sha256": digest}}
        if date is not None:
            entry["upload-time"] = f"{date}T12:00:00.000000Z"
        self._pages[name].append(entry)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                kind, body = index._answer(self.path)
                self.send_response(200 if body is not None else 404)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                if body and self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def _answer(self, path: str) -> tuple[str, bytes | None]:
        _, _, name = path.rstrip("/").rpartition("/")
        if path.startswith("/files/"):
            return "application/octet-stream", self._wheels.get(name)
        self.asked.append(name)
        files = self._pages.get(name)
        if files is None:
            return "text/plain", None
        if not self._json:
            links = "".join(f'<a href="{one["url"]}">{one["filename"]}</a>' for one in files)
            return "text/html", f"<!DOCTYPE html><html><body>{links}</body></html>".encode()
        page = {"meta": {"api-version": "1.1"}, "name": name, "files": files, "versions": []}
        return "application/vnd.pypi.simple.v1+json", json.dumps(page).encode()


def _wheel(name: str, version: str, requires: tuple[str, ...], tag: str) -> bytes:
    folder = f"{name.replace('-', '_')}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    files = {
        f"{name.replace('-', '_')}.py": f"version = {version!r}\n",
        f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{folder}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = "".join(f"{path},sha256={_digest(text)},{len(text)}\n" for path, text in files.items())
    files[f"{folder}/RECORD"] = f"{record}{folder}/RECORD,,\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return buffer.getvalue()


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
