"""A hub on a port of loopback: the endpoints that huggingface_hub calls to write and read a repository of a model.

It keeps commits as git does, each all of its files, and large files by their sha256, as the hub keeps them by LFS:
uploads are taken by the batch API, downloads are redirected. What it was asked is in `requests`.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

LARGE = 1 << 16  # bytes from which on a file is large
TOKEN = "hf_of_the_owner"


@dataclass
class Repository:
    """Branches are names of commits, and a commit has the contents of all of its files."""

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    messages: list[str] = field(default_factory=list)

    def files(self, revision: str) -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        seed = f"{len(self.commits)}{message}{sorted(files)}"
        oid = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        self.messages.append(message)
        return oid


class Hub:
    """What the hub knows; a test may change it between two requests."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}  # sha256 -> content
        self.requests: list[str] = []
        self.url = ""
        self.storage = ""  # another host, as the hub's is: its client tells redirects to there from moved repositories

    def damage(self, repo: str, path: str) -> None:
        """A bit of a file changes on the hub, in all of its commits, as it would on a disk."""
        for files in self.repositories[repo].commits.values():
            if content := files.get(path):
                files[path] = content[:-1] + bytes([content[-1] ^ 1])


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub that answers at `url` until the context ends."""
    hub = Hub()
    with _serving(hub) as hub.url, _serving(hub) as hub.storage:
        yield hub


@contextmanager
def _serving(hub: Hub) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def point_client_at(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have huggingface_hub in this process speak with a hub, and keep what it gets in a folder."""
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,  # the protocol of LFS, which is a public one
    }.items():
        monkeypatch.setattr(constants, name, value)


class RefusedError(Exception):
    """An answer that is an error: status and the code that the client reads."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """The test reads `requests`."""

    def do_GET(self) -> None:
        self._serve(_READS)

    def do_HEAD(self) -> None:
        self._serve(_READS)

    def do_POST(self) -> None:
        self._serve(_WRITES)

    def do_PUT(self) -> None:
        self._serve(_WRITES)

    def _serve(self, routes: dict[str, str]) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        self.body = self._read_body()
        try:
            for pattern, name in routes.items():
                if match := re.fullmatch(pattern, path):
                    getattr(self, name)(*match.groups())
                    return
            raise RefusedError(404, "NoSuchRoute")
        except RefusedError as error:
            self._answer(b"{}", error.status, {"X-Error-Code": error.code, "X-Error-Message": error.code})

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        # Closed, so that nobody answers any more once the server is gone.
        always = {"Content-Length": str(len(content)), "Connection": "close"}
        for name, value in {**always, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def _repository(self, repo: str, revision: str = "main", content: bool = False) -> Repository:
        """Refused as the hub does: who may not know of a repository is told that there is none."""
        found = self.hub.repositories.get(repo)
        owner = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if found is None or (found.private and not owner):
            raise RefusedError(404 if owner else 401, "RepoNotFound")
        if content and found.gated and not owner:
            raise RefusedError(401, "GatedRepo")
        if revision not in found.branches and revision not in found.commits:
            raise RefusedError(404, "RevisionNotFound")
        return found

    def _owner(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise RefusedError(401, "Unauthorized")

    # Writing

    def create(self) -> None:
        self._owner()
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.hub.repositories:
            self._json({"error": "Conflict", "url": f"{self.hub.url}/{repo}"}, 409)
            return
        self.hub.repositories[repo] = Repository(
            private="private" in (asked.get("visibility"), asked.get("private") and "private")
        )
        self._json({"url": f"{self.hub.url}/{repo}"})

    def branch(self, repo: str, branch: str) -> None:
        self._owner()
        branches = self._repository(repo).branches
        if branch in branches:
            raise RefusedError(409, "Conflict")
        branches[branch] = branches["main"]
        self._json({})

    def validate(self) -> None:
        self._json({"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        self._owner()
        there = self._repository(repo, revision).files(revision)
        self._json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                        "shouldIgnore": False,
                        "oid": _blob_id(there[file["path"]]) if file["path"] in there else None,
                    }
                    for file in json.loads(self.body)["files"]
                ]
            }
        )

    def batch(self, repo: str) -> None:
        self._owner()
        objects = []
        for asked in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.hub.storage}/storage/{asked['oid']}"}
            verify = {"href": f"{self.hub.url}/verify"}
            there = asked["oid"] in self.hub.large
            objects.append(asked if there else {**asked, "actions": {"upload": upload, "verify": verify}})
        self._json({"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        if _sha256(self.body) != oid:
            raise RefusedError(400, "BadContent")
        self.hub.large[oid] = self.body
        self._answer(b"")

    def verify(self) -> None:
        asked = json.loads(self.body)
        if len(self.hub.large[asked["oid"]]) != asked["size"]:
            raise RefusedError(400, "BadSize")
        self._json({})

    def commit(self, repo: str, branch: str) -> None:
        self._owner()
        repository = self._repository(repo, branch)
        files, message = dict(repository.files(branch)), ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                assert item["key"] == "deletedFile", item
                del files[value["path"]]
        oid = repository.commit(branch, files, message)
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}"})

    # Reading

    def info(self, repo: str, revision: str | None = None) -> None:
        repository = self._repository(repo, revision or "main")
        sha = repository.branches.get(revision or "main", revision)
        self._json({"id": repo, "modelId": repo, "sha": sha, "private": repository.private, "siblings": []})

    def tree(self, repo: str, revision: str) -> None:
        files = self._repository(repo, revision).files(revision)
        self._json([_entry(path, content) for path, content in files.items()])

    def resolve(self, repo: str, revision: str, path: str) -> None:
        repository = self._repository(repo, revision, content=True)
        headers = {"X-Repo-Commit": repository.branches.get(revision, revision)}
        content = repository.files(revision).get(path)
        if content is None:
            raise RefusedError(404, "EntryNotFound")
        if len(content) < LARGE:
            self._answer(content, headers={**headers, "ETag": f'"{_blob_id(content)}"'})
            return
        headers |= {"X-Linked-Etag": f'"{_sha256(content)}"', "X-Linked-Size": str(len(content))}
        self._answer(b"", 302, {**headers, "Location": f"{self.hub.storage}/storage/{_sha256(content)}"})

    def stored(self, oid: str) -> None:
        content = self.hub.large.get(oid) or next(c for c in self._all_contents() if _sha256(c) == oid)
        self._answer(content, headers={"ETag": f'"{oid}"'})

    def _all_contents(self) -> Iterator[bytes]:
        for repository in self.hub.repositories.values():
            for files in repository.commits.values():
                yield from files.values()


_REPO = r"([\w.-]+/[\w.-]+)"
_WRITES = {
    "/api/repos/create": "create",
    "/api/validate-yaml": "validate",
    f"/api/models/{_REPO}/branch/(.+)": "branch",
    f"/api/models/{_REPO}/preupload/(.+)": "preupload",
    f"/api/models/{_REPO}/commit/(.+)": "commit",
    f"/{_REPO}\\.git/info/lfs/objects/batch": "batch",
    "/storage/([0-9a-f]{64})": "store",
    "/verify": "verify",
}
_READS = {
    f"/api/models/{_REPO}": "info",
    f"/api/models/{_REPO}/revision/(.+)": "info",
    f"/api/models/{_REPO}/tree/(.+)": "tree",
    f"/{_REPO}/resolve/([^/]+)/(.+)": "resolve",
    "/storage/([0-9a-f]{64})": "stored",
}


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _blob_id(content)}
    if len(content) >= LARGE:
        entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 134}
    return entry


def _blob_id(content: bytes) -> str:
    """Of a file's content, as git names it; of a large one, its sha256."""
    if len(content) >= LARGE:
        return _sha256(content)
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
