"""A local server with the part of the hub's API that huggingface_hub uses in these tests.

It creates repositories, accepts uploads (regular and LFS) and commits, lists files and serves downloads. In a card, it
only checks that the metadata is valid YAML.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_" + "loopbackLOOPBACKloopback"


@dataclass
class Repository:
    """A repository of a model.

    commits: the files of each commit, by the commit's id. The last commit is main.
    lfs: paths of the files that were uploaded with LFS.
    """

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    def commit(self, files: dict[str, bytes]) -> str:
        content = json.dumps([len(self.commits), sorted((name, _sha(one)) for name, one in files.items())])
        name = hashlib.sha1(content.encode()).hexdigest()
        self.commits[name] = files
        return name


@dataclass
class Hub:
    """The state of the server.

    url: address of the server, for HF_ENDPOINT.
    store: address of the large files. Its host name differs from that of `url`, as on the real hub.
    calls: every request, as `METHOD path`.
    broken: whether the server refuses uploads of large files.
    """

    url: str = ""
    store: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    broken: bool = False


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\x00" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answer one request with the function in ROUTES that fits its method and path."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        self.path = unquote(urlsplit(self.path).path)
        self.body = self._body()
        self.hub.calls.append(f"{method} {self.path}")
        for pattern, answer in ROUTES.items():
            verb, _, form = pattern.partition(" ")
            found = re.fullmatch(form, self.path)
            if found and method in verb.split("|"):
                answer(self, *found.groups())
                return
        self.send(404, {"error": "no such address"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def json(self) -> Any:
        return json.loads(self.body)

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def repository(self, name: str) -> Repository | None:
        """Return the repository. If it is missing, or private and the token is wrong, send the hub's error."""
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self.known()):
            self.send(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        return found

    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def refuse_stranger(self) -> bool:
        if not self.known():
            output = self.headers.get("Authorization", "nothing")
            # the error repeats the token, as a careless server would
            self.send(401, {"error": f"Invalid credentials: {output}"})
        return not self.known()


def validate(one: Handler) -> None:
    head = one.json()["content"].split("---\n")[1]
    try:
        yaml.safe_load(head)
    except yaml.YAMLError as error:
        one.send(400, {"errors": [{"message": str(error)}], "warnings": []})
        return
    one.send(200, {"errors": [], "warnings": []})


def create(one: Handler) -> None:
    if one.refuse_stranger():
        return
    asked = one.json()
    name = f"{asked['organization']}/{asked['name']}"
    if name in one.hub.repositories:
        one.send(409, {"error": "You already created this model repo", "url": f"{one.hub.url}/{name}"})
        return
    made = Repository(asked.get("visibility") == "private" or bool(asked.get("private")))
    made.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
    one.hub.repositories[name] = made
    one.send(200, {"url": f"{one.hub.url}/{name}", "name": name})


def about(one: Handler, name: str, revision: str | None = None) -> None:
    found = one.repository(name)
    if found is None:
        return
    commit = found.head if revision in (None, "main") else str(revision)
    if commit not in found.commits:
        one.send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        return
    files = [{"rfilename": path} for path in found.commits[commit]]
    one.send(200, {"id": name, "modelId": name, "sha": commit, "private": found.private, "siblings": files, "tags": []})


def preupload(one: Handler, name: str, revision: str) -> None:
    if one.repository(name) is None or one.refuse_stranger():
        return
    files = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".parquet")) else "regular",
            "shouldIgnore": False,
        }
        for file in one.json()["files"]
    ]
    one.send(200, {"files": files})


def batch(one: Handler, name: str) -> None:
    if one.repository(name) is None or one.refuse_stranger():
        return
    objects = [
        {
            "oid": asked["oid"],
            "size": asked["size"],
            "actions": {
                "upload": {"href": f"{one.hub.url}/lfs/{asked['oid']}", "header": {}},
                "verify": {"href": f"{one.hub.url}/verify", "header": {}},
            },
        }
        for asked in one.json()["objects"]
    ]
    one.send(200, {"transfer": "basic", "objects": objects})


def put(one: Handler, oid: str) -> None:
    if one.hub.broken:
        one.send(403, {"error": "the store is closed"})
        return
    assert _sha(one.body) == oid
    one.hub.blobs[oid] = one.body
    one.send(200, {})


def verify(one: Handler) -> None:
    asked = one.json()
    right = len(one.hub.blobs.get(asked["oid"], b"")) == asked["size"]
    one.send(200 if right else 422, {})


def commit(one: Handler, name: str, revision: str) -> None:
    found = one.repository(name)
    if found is None or one.refuse_stranger():
        return
    files = dict(found.commits[found.head])
    for line in one.body.decode().splitlines():
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif item["key"] == "lfsFile":
            files[value["path"]] = one.hub.blobs[value["oid"]]
            found.lfs.add(value["path"])
    oid = found.commit(files)
    one.send(200, {"commitUrl": f"{one.hub.url}/{name}/commit/{oid}", "commitOid": oid})


def tree(one: Handler, name: str, revision: str) -> None:
    found = one.repository(name)
    if found is None:
        return
    files = found.commits[found.head if revision == "main" else revision]
    rows = []
    for path, content in files.items():
        row: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
        if path in found.lfs:
            row["lfs"] = {"oid": _sha(content), "size": len(content), "pointerSize": 134}
        rows.append(row)
    one.send(200, rows)


def resolve(one: Handler, name: str, revision: str, path: str) -> None:
    found = one.repository(name)
    if found is None:
        return
    at = found.head if revision == "main" else revision
    content = found.commits.get(at, {}).get(path)
    if content is None:
        one.send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        return
    headers = {"X-Repo-Commit": at}
    if path in found.lfs:
        sha = _sha(content)
        linked = {
            "X-Linked-Etag": f'"{sha}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"{one.hub.store}/lfs/{sha}",
        }
        one.send(302, b"", headers | linked)
        return
    one.send(200, content, headers | {"ETag": f'"{_blob(content)}"'})


def blob(one: Handler, oid: str) -> None:
    content = one.hub.blobs[oid]
    one.send(200, content, {"ETag": f'"{oid}"'})


_NAME, _REV = r"([\w.-]+/[\w.-]+)", r"([\w.-]+)"
ROUTES = {
    "POST /api/validate-yaml": validate,
    "POST /api/repos/create": create,
    f"GET /api/models/{_NAME}": about,
    f"GET /api/models/{_NAME}/revision/{_REV}": about,
    f"POST /api/models/{_NAME}/preupload/{_REV}": preupload,
    f"POST /api/models/{_NAME}/commit/{_REV}": commit,
    f"GET /api/models/{_NAME}/tree/{_REV}": tree,
    f"POST /{_NAME}.git/info/lfs/objects/batch": batch,
    "PUT /lfs/([0-9a-f]{64})": put,
    "POST /verify": verify,
    "GET|HEAD /lfs/([0-9a-f]{64})": blob,
    f"GET|HEAD /{_NAME}/resolve/{_REV}/(.+)": resolve,
}


@contextmanager
def serving() -> Iterator[Hub]:
    """Run a hub in a thread until the end of the `with` block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    hub.store = hub.url.replace("127.0.0.1", "localhost")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
