"""A hub of data sets on this machine: the part of its protocol that streaming uses, and every way to fail.

It serves repositories from memory. `faults` is asked before every answer with content: it may name
a status to answer instead, or a number of bytes after which the connection is dropped.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

API = re.compile(r"/api/datasets/(?P<repo>[\w.-]+/[\w.-]+)(/(?P<what>revision|refs|tree|paths-info)(/(?P<rest>.*))?)?")
RESOLVE = re.compile(r"/datasets/(?P<repo>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Fault:
    """One bad answer: a status, or a connection that breaks after so many bytes."""

    status: int = 0
    drop_after: int = -1
    retry_after: str | None = None


@dataclass
class FakeHub:
    """The hub: `repos[name][commit][path]` is the content of a file; `branches[name]["main"]` a commit."""

    repos: dict[str, dict[str, Mapping[str, bytes]]] = field(default_factory=dict)
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    faults: Callable[[str, int], Fault | None] = lambda path, number: None
    requests: list[str] = field(default_factory=list)
    content_bytes: int = 0
    url: str = ""

    def commit(self, repo: str, files: Mapping[str, bytes]) -> str:
        """Put files under a new commit of `main`."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repos.setdefault(repo, {})[commit] = dict(files)
        self.branches.setdefault(repo, {})["main"] = commit
        return commit

    def resolved(self, repo: str, revision: str) -> str | None:
        commit = self.branches.get(repo, {}).get(revision, revision)
        return commit if commit in self.repos.get(repo, {}) else None


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve the hub on a free port while the body runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_POST(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if found := RESOLVE.fullmatch(path):
            self._file(found["repo"], found["revision"], found["path"], with_body)
        elif found := API.fullmatch(path):
            self._api(found["repo"], found["what"], found["rest"] or "", body)
        else:
            self._send(404, b"")

    def _api(self, repo: str, what: str | None, rest: str, body: bytes) -> None:
        fault = self.hub.faults(f"api {repo}", len(self.hub.requests))
        if fault is not None and fault.status:
            return self._send(fault.status, b"", {"Retry-After": fault.retry_after or "0"})
        if repo not in self.hub.repos:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if what == "refs":
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
                for name, commit in self.hub.branches[repo].items()
            ]
            return self._json({"branches": branches, "converts": [], "tags": []})
        revision, _, folder = (rest if what else "main").partition("/")
        commit = self.hub.resolved(repo, revision)
        if commit is None:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files = self.hub.repos[repo][commit]
        if what == "tree":
            return self._json(_tree(files, folder, "recursive=true" in self.path.lower()))
        if what == "paths-info":
            # The client sends a form here, one `paths` for each.
            asked = set(re.findall(r"paths=([^&]*)", unquote(body.decode())))
            return self._json([_entry(path, content) for path, content in files.items() if path in asked])
        return self._json({"id": repo, "sha": commit, "siblings": [{"rfilename": path} for path in files], "tags": []})

    def _file(self, repo: str, revision: str, path: str, with_body: bool) -> None:
        commit = self.hub.resolved(repo, revision)
        if commit is None:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        content = self.hub.repos[repo][commit].get(path)
        if content is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        status = 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if wanted:
            begin, end = int(wanted[1]), int(wanted[2]) + 1
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
            content, status = content[begin:end], 206
        fault = self.hub.faults(path, len(self.hub.requests)) if with_body else None
        if fault is not None and fault.status:
            return self._send(fault.status, b"", {"Retry-After": fault.retry_after or "0"})
        self.hub.content_bytes += len(content) if with_body else 0
        return self._send(status, content, headers, with_body, -1 if fault is None else fault.drop_after)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, with_body: bool = True, drop: int = -1
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body if drop < 0 else body[:drop])
        if drop >= 0:
            self.close_connection = True


def _tree(files: Mapping[str, bytes], folder: str, recursive: bool) -> list[dict[str, object]]:
    """Files and folders below a folder, as deep as is asked."""
    prefix = f"{folder}/" if folder else ""
    below = {path: content for path, content in files.items() if path.startswith(prefix)}
    parents = {"/".join(path.split("/")[:depth]) for path in below for depth in range(1, path.count("/") + 1)}
    folders = [
        {"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(parents) if path.startswith(prefix)
    ]
    entries = [*folders, *(_entry(path, content) for path, content in sorted(below.items()))]
    return [entry for entry in entries if recursive or "/" not in str(entry["path"]).removeprefix(prefix)]


def _entry(path: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
