"""A hub of datasets on this machine: the calls that Hugging Face's libraries make for files, answered from a folder."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "1" * 40


class Hub(BaseHTTPRequestHandler):
    """``root/OWNER/NAME`` holds the files of the dataset OWNER/NAME."""

    protocol_version = "HTTP/1.1"

    def __init__(self, root: Path, *arguments: Any) -> None:
        self.root = root
        super().__init__(*arguments)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.answer(urlsplit(self.path).path)

    def do_GET(self) -> None:
        self.answer(urlsplit(self.path).path)

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        given: dict[str, Any] = json.loads(sent) if sent.startswith("{") else parse_qs(sent)
        self.answer(urlsplit(self.path).path, given.get("paths", []))

    def answer(self, path: str, paths: list[str] | None = None) -> None:
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[:2] == ["api", "datasets"]:
            self.describe(self.root.joinpath(*parts[2:4]), parts[4:], paths)
        elif parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            self.file(self.root.joinpath(*parts[1:3], *parts[5:]))
        else:
            self.missing()

    def describe(self, folder: Path, rest: list[str], paths: list[str] | None) -> None:
        """What is in a dataset: all of it, a folder of it, or some paths."""
        if not folder.is_dir():
            self.missing("RepoNotFound")
            return
        entries = [entry_of(folder, path) for path in sorted(folder.rglob("*"))]
        if rest[:1] == ["paths-info"]:
            self.say([entry for entry in entries if entry["path"] in (paths or [])])
        elif rest[:1] == ["tree"]:
            below = "/".join(rest[2:])
            self.say([entry for entry in entries if not below or entry["path"].startswith(f"{below}/")])
        else:
            files = [{"rfilename": entry["path"]} for entry in entries if entry["type"] == "file"]
            self.say(
                {"id": "/".join(folder.parts[-2:]), "sha": COMMIT, "siblings": files, "tags": [], "private": False}
            )

    def file(self, path: Path) -> None:
        if not path.is_file():
            self.missing("EntryNotFound")
            return
        data = path.read_bytes()
        first, last = 0, len(data) - 1
        if asked := self.headers.get("Range"):
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(last, int(end or last))
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if asked:
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self.send(206 if asked else 200, data[first : last + 1], headers)

    def say(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def missing(self, code: str = "EntryNotFound") -> None:
        self.send(404, b"{}", {"X-Error-Code": code, "Content-Type": "application/json"})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def entry_of(folder: Path, path: Path) -> dict[str, Any]:
    name = str(path.relative_to(folder))
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40}
    data = path.read_bytes()
    return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """The address of a hub of the datasets below ``root``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, root))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
