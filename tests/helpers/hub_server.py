"""A hub on loopback: what huggingface_hub asks of huggingface.co to fetch a repository, so that the
library itself makes its cache."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# Names that answer as the hub does, by status and code: 401 for what is not there, too.
REFUSED = {"nobody/private": (401, "RepoNotFound"), "someone/gated": (403, "GatedRepo")}


@dataclass
class Hub:
    """url: its address. folders: of a repository's name, the files of its last commit.
    commits: of each, its hash; another one is a new revision. asked: paths, in order."""

    url: str = ""
    folders: dict[str, Path] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def publish(self, name: str, folder: Path, commit: str) -> None:
        self.folders[name], self.commits[name] = folder, commit


@contextlib.contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _answer(self, hub)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _answer(request: BaseHTTPRequestHandler, hub: Hub) -> None:
    path = request.path.split("?")[0].strip("/")
    hub.asked.append(path)
    parts = path.removeprefix("api/models/").split("/")
    name, rest = "/".join(parts[:2]), parts[2:]
    commit = hub.commits.get(name)
    if name in REFUSED or commit is None:
        status, code = REFUSED.get(name, (401, "RepoNotFound"))
        _send(request, status, b"{}", {"X-Error-Code": code})
        return
    # .../resolve/REVISION/FILE, .../revision/REVISION, .../tree/REVISION
    if rest and rest[1] not in ("main", commit):
        _send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        return
    files = sorted(p for p in hub.folders[name].rglob("*") if p.is_file())
    names = {p.relative_to(hub.folders[name]).as_posix(): p for p in files}
    if not path.startswith("api/"):  # NAME/resolve/REVISION/FILE
        _send_file(request, names.get("/".join(rest[2:])), commit)
        return
    if rest[:1] == ["tree"]:
        found: object = [
            {"type": "file", "path": n, "size": p.stat().st_size, "oid": _etag(p)}
            for n, p in names.items()
        ]
    else:
        found = {"id": name, "sha": commit, "siblings": [{"rfilename": n} for n in names]}
    _send(request, 200, json.dumps(found).encode(), {"Content-Type": "application/json"})


def _send_file(request: BaseHTTPRequestHandler, path: Path | None, commit: str) -> None:
    headers = {"X-Repo-Commit": commit}
    if path is None:
        _send(request, 404, b"", headers | {"X-Error-Code": "EntryNotFound"})
    else:
        _send(request, 200, path.read_bytes(), headers | {"ETag": f'"{_etag(path)}"'})


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def _send(
    request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]
) -> None:
    request.send_response(status)
    for key, value in ({"Content-Length": str(len(body))} | headers).items():
        request.send_header(key, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
